"""Command lines of folders and KEY=VALUE, in any order."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NoReturn

from backdoor_lab.core.errors import ConfigError, unknown
from backdoor_lab.core.paths import usable
from backdoor_lab.core.terminal import print_error


def options(given: Sequence[str], known: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """What is no option, and the value of each option. An option is KEY=VALUE, unless there is a
    file of that very name. Raises ConfigError for a key that is not known or comes twice."""
    others: list[str] = []
    found: dict[str, str] = {}
    for each in given:
        key, equals, value = each.partition("=")
        if not equals or not key.isidentifier() or os.path.lexists(each):
            others.append(each)
        elif key not in known:
            raise unknown("option", f"{key}=", [f"{name}=" for name in known])
        elif key in found:
            raise ConfigError(f"`{key}=` is given twice")
        else:
            found[key] = value
    return others, found


def names(key: str, value: str, known: Iterable[str], more: Iterable[str] = ()) -> tuple[str, ...]:
    """The names in ``a,b,c``. Raises ConfigError for one that is not known, twice or empty;
    `more` are known too, but too many to be listed."""
    given, listed, others = [name.strip() for name in value.split(",")], list(known), set(more)
    for position, name in enumerate(given):
        if name not in listed and name not in others:
            families = {f"{other.partition('.')[0]}.*" for other in others}
            raise unknown(f"`{key}`:", name, [*listed, *sorted(families)])
        if name in given[:position]:
            raise ConfigError(f"`{key}` names {name} twice")
    return tuple(given)


def path_of(text: str) -> Path:
    """A file's or folder's path, for argparse, with `~` replaced. What can be no path is refused,
    as an empty text, which a shell makes of a variable that is not set."""
    try:
        return usable("path", text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


class Parser(argparse.ArgumentParser):
    """Says what is wrong with a command line in one line, and exits with 2."""

    def error(self, message: str) -> NoReturn:
        """Overrides argparse's, which prints the usage as well."""
        sys.exit(print_error(ConfigError(message)))


def parser_of(command: str, description: str | None) -> Parser:
    """The parser of ``python -m backdoor_lab.COMMAND``; `description` is the module's docstring,
    which the help shows line by line as it is written."""
    return Parser(
        prog=f"python -m backdoor_lab.{command}", description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
