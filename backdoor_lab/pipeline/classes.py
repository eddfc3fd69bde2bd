"""Converts the values of `target` and `source` to class numbers of a data set."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from backdoor_lab.core.errors import ConfigError, unknown


def class_number(key: str, value: object, classes: Sequence[str]) -> int:
    """Convert the name or the number of a class to its number. A name takes precedence.

    Names are compared in Unicode NFC, since some file systems decompose folder names. `key` is the
    configuration key, for messages. Raises ConfigError, which lists the classes, for an unknown
    class, and for a number that could also be the name of another class.
    """
    if value is None or isinstance(value, (bool, float)):
        raise _not_a_name(key, value, classes)
    # The command line parses a name such as "7" as a number: a class named "7" takes precedence
    # over class number 7.
    wanted = unicodedata.normalize("NFC", str(value))
    for number, name in enumerate(classes):
        if unicodedata.normalize("NFC", name) == wanted:
            return number
    if isinstance(value, int) and 0 <= value < len(classes):
        _check_only_reading(key, value, classes)
        return value
    # If a class is called by a number, numbers may be ambiguous.
    named = any(name.isdecimal() for name in classes)
    raise unknown(f"`{key}`", value, classes, "" if named else f", or 0 to {len(classes) - 1}")


def _not_a_name(key: str, value: object, classes: Sequence[str]) -> ConfigError:
    # The command line parses 1.10 as the float 1.1, true as a boolean, and null as None.
    kinds = {bool: "as true or false", float: "as a number", type(None): "as null"}
    word = {True: "true", False: "false", None: "null"}.get(value, "…")  # type: ignore[call-overload]
    return ConfigError(
        f"`{key}`={word if word != '…' else repr(value)} was read {kinds[type(value)]}, not as a"
        f" name: quote it ({key}=\"'{word}'\"), or give one of the numbers 0 to {len(classes) - 1}"
    )


def _check_only_reading(key: str, value: int, classes: Sequence[str]) -> None:
    """Raises ConfigError if a class name is another spelling of `value`, such as 01 for 1."""
    called = [name for name in classes if name.isdecimal() and int(name) == value]
    others = [name for name in called if name != classes[value]]
    if others:
        raise ConfigError(
            f"`{key}`={value} may mean class number {value}, which is {classes[value]!r}, or the"
            f" class called {others[0]!r}: give the name, quoted ({key}=\"'{classes[value]}'\" or"
            f" {key}=\"'{others[0]}'\")"
        )
