"""Which class of a data set `target` or `source` means."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from backdoor_lab.core.errors import ConfigError, unknown


def class_number(key: str, value: object, classes: Sequence[str]) -> int:
    """The number of a class given by name or, where no class has such a name, by number.

    Names are compared in Unicode's composed form, since some file systems give folders' names
    decomposed. Raises ConfigError, which lists the classes there are, or both classes that a
    number may mean.
    """
    if value is None or isinstance(value, (bool, float)):
        raise _not_a_name(key, value, classes)
    # Names such as "7" arrive from the command line as numbers: a class called so goes first.
    wanted = unicodedata.normalize("NFC", str(value))
    for number, name in enumerate(classes):
        if unicodedata.normalize("NFC", name) == wanted:
            return number
    if isinstance(value, int) and 0 <= value < len(classes):
        _check_only_reading(key, value, classes)
        return value
    raise unknown(f"`{key}`", value, classes)


def _not_a_name(key: str, value: object, classes: Sequence[str]) -> ConfigError:
    # The command line reads 1.10 as the number 1.1, and no, off and null as no text either.
    kinds = {bool: "as true or false", float: "as a number", type(None): "as nothing"}
    word = {True: "true", False: "false", None: "null"}.get(value, "…")  # type: ignore[call-overload]
    return ConfigError(
        f"`{key}`={word if word != '…' else repr(value)} was read {kinds[type(value)]}, not as a"
        f" name: quote it ({key}=\"'{word}'\"), or give one of the numbers 0 to {len(classes) - 1}"
    )


def _check_only_reading(key: str, value: int, classes: Sequence[str]) -> None:
    """Raises ConfigError where a class is called by this number, written otherwise: 01 for 1."""
    called = [name for name in classes if name.isdecimal() and int(name) == value]
    others = [name for name in called if name != classes[value]]
    if others:
        raise ConfigError(
            f"`{key}`={value} may mean class number {value}, which is {classes[value]!r}, or the"
            f" class called {others[0]!r}: give the name, quoted ({key}=\"'{classes[value]}'\" or"
            f" {key}=\"'{others[0]}'\")"
        )
