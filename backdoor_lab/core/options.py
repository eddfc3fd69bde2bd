"""Command lines that mix folders and KEY=VALUE options in any order."""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from backdoor_lab.core.errors import ConfigError, unknown
from backdoor_lab.core.paths import usable
from backdoor_lab.core.terminal import print_error
from backdoor_lab.core.validation import new_column


def options(given: Sequence[str], known: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Splits command-line arguments into positional arguments and KEY=VALUE options. An argument
    that is the name of an existing file is positional. Raises ConfigError for an unknown or
    repeated key."""
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
    """Returns the names in `value`, which are separated by commas. Raises ConfigError for a name
    that is repeated, empty, or in neither `known` nor `more`. The error message lists `known` in
    full, but abbreviates `more`, for example to ``config.*``."""
    given, listed, others = [name.strip() for name in value.split(",")], list(known), set(more)
    for position, name in enumerate(given):
        if name not in listed and name not in others:
            families = {f"{other.partition('.')[0]}.*" for other in others}
            current = new_column(name)
            moved = "" if current is None else f"`{key}`: `{name}` was renamed to `{current}`"
            if current in (*listed, *others):
                raise ConfigError(moved)
            error = unknown(f"`{key}`:", current or name, [*listed, *sorted(families)])
            raise ConfigError(f"{moved}. {error}") if moved else error
        if name in given[:position]:
            raise ConfigError(f"`{key}` names {name} twice")
    return tuple(given)


def unknown_flag(
    word: str, words: Sequence[str], flags: Iterable[str], keys: Mapping[str, str]
) -> ConfigError:
    """Returns the error for an unknown flag of the command line `words`, such as ``--dryrun`` or
    ``--seed=3``, with the flag or the option that is spelled similarly. `keys` maps the name of
    each option to the value to suggest."""
    given, _, value = word.partition("=")
    name, dot, rest = given.lstrip("-").partition(".")
    spelled = {_letters(key): key for key in keys}
    known = {_letters(flag): flag for flag in flags} | spelled
    near = difflib.get_close_matches(_letters(name), known, n=1, cutoff=0.75)
    hint = "options have no dashes, KEY=VALUE: --help lists them, and --hydra-help the flags"
    if near and near[0] not in spelled:
        hint = f"did you mean {known[near[0]]}? {hint}"
    elif near:
        key = spelled[near[0]]
        after = words[words.index(word) + 1 :][:1] if word in words else []
        values = [value, *(each for each in after if not re.search("^-|=", each)), keys[key]]
        hint = f"write {key}{dot}{rest}={next(filter(None, values))}; {hint}"
    return ConfigError(f"unknown flag {given[:80]}: {hint}")


def no_key(word: str, before: str) -> ConfigError:
    """Returns the error for a word of the command line that is not ``KEY=VALUE``; `before` is the
    word before it."""
    key, _, value = before.partition("=")
    hint = ""
    if key and value:
        hint = (
            ": write several values without spaces between them"
            f" ({key}={value.rstrip(',')},{word}), or a value that contains a space in quotes"
            f' ("{before} {word}")'
        )
    return ConfigError(f"{word!r} is not of the form KEY=VALUE{hint}")


def _letters(name: str) -> str:
    return re.sub(r"[\W_]", "", name).lower()


def path_of(text: str) -> Path:
    """Converts a command-line argument to a path, with `~` expanded; for argparse. Raises
    ArgumentTypeError for an invalid path, such as the empty string that an unset shell variable
    leaves."""
    try:
        return usable("path", text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


class Parser(argparse.ArgumentParser):
    """An argument parser that reports an error on one line and exits with code 2."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Overrides argparse's method: positional arguments may appear before, between and after
        options, except in a parser with subcommands."""
        if self._subparsers is not None:
            return super().parse_args(args, namespace)
        return self.parse_intermixed_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Overrides argparse's method: prints only the message, without the usage, and exits with
        code 2."""
        sys.exit(print_error(ConfigError(message)))


def add_plugin_words(parser: Parser) -> None:
    """Adds the arguments `plugins` of a command that may need the code of a plug-in."""
    parser.add_argument(
        "plugins", nargs="*", metavar="PLUG-IN",
        help="allow_plugins=[package] or plugins=[file.py], if the trigger is in a plug-in",
    )  # fmt: skip


def parser_of(command: str, description: str | None) -> Parser:
    """Returns the argument parser of ``python -m backdoor_lab.COMMAND``. `description` is the
    module's docstring; the help shows it with its line breaks."""
    return Parser(
        prog=f"python -m backdoor_lab.{command}", description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
