"""Resolves `target` and `source` to classes of a data set."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from backdoor_lab.core.errors import ConfigError, unknown


def class_number(key: str, value: object, classes: Sequence[str]) -> int:
    """The number of a class given by name or, if no class has that name, by number.

    Names are compared in Unicode NFC, since some file systems decompose folder names. Raises
    ConfigError, which lists the classes, or the two classes that an ambiguous number may mean.
    """
    if value is None or isinstance(value, (bool, float)):
        raise _not_a_name(key, value, classes)
    # The command line parses names such as "7" as numbers: a class with that name takes precedence.
    wanted = unicodedata.normalize("NFC", str(value))
    for number, name in enumerate(classes):
        if unicodedata.normalize("NFC", name) == wanted:
            return number
    if isinstance(value, int) and 0 <= value < len(classes):
        _check_only_reading(key, value, classes)
        return value
    raise unknown(f"`{key}`", value, classes)


def _not_a_name(key: str, value: object, classes: Sequence[str]) -> ConfigError:
    # The command line parses 1.10 as the number 1.1, and no, off and null as other types.
    kinds = {bool: "as true or false", float: "as a number", type(None): "as nothing"}
    word = {True: "true", False: "false", None: "null"}.get(value, "…")  # type: ignore[call-overload]
    return ConfigError(
        f"`{key}`={word if word != '…' else repr(value)} was read {kinds[type(value)]}, not as a"
        f" name: quote it ({key}=\"'{word}'\"), or give one of the numbers 0 to {len(classes) - 1}"
    )


def _check_only_reading(key: str, value: int, classes: Sequence[str]) -> None:
    """Raises ConfigError if a class name is another spelling of this number, such as 01 for 1."""
    called = [name for name in classes if name.isdecimal() and int(name) == value]
    others = [name for name in called if name != classes[value]]
    if others:
        raise ConfigError(
            f"`{key}`={value} may mean class number {value}, which is {classes[value]!r}, or the"
            f" class called {others[0]!r}: give the name, quoted ({key}=\"'{classes[value]}'\" or"
            f" {key}=\"'{others[0]}'\")"
        )
