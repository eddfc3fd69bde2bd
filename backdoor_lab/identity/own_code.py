"""Errors raised by the code of a trigger or a defense, which may be a user's own."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from backdoor_lab.core.errors import ConfigError, LabError, is_out_of_memory, reason_of
from backdoor_lab.identity import FOLDERS
from backdoor_lab.identity.sources import PACKAGE, ROOT

_SECTIONS = {"trigger": "triggers", "defense": "defenses"}


class OwnCodeError(ConfigError):
    """Code of a trigger or defense raised an error other than a LabError."""


def own_code_error(error: BaseException, config: Mapping[str, Any]) -> OwnCodeError | None:
    """Returns an error that names the component and the line if `error` was raised in the file of a
    trigger or defense of `config`, or in code called from there.

    Returns None for all other errors, so that a bug elsewhere in this package keeps its traceback.
    Also returns None for out-of-memory errors, and for a LabError, whose message needs no addition.
    """
    if isinstance(error, LabError) or is_out_of_memory(error):
        return None
    for key, path in _files(config):
        line = _line(error, path)
        if line is not None:
            chosen = f"{key}={config[key].get('name')}"
            where = f"{PACKAGE}/{path.relative_to(ROOT).as_posix()}:{line}"
            return OwnCodeError(f"`{chosen}`: {where} raised {reason_of(error)}")
    return None


@contextmanager
def explained(config: Mapping[str, Any]) -> Iterator[None]:
    """Context manager that replaces an error with the one that `own_code_error` returns, if any."""
    try:
        yield
    except Exception as error:
        found = own_code_error(error, config)
        if found is None:
            raise
        raise OwnCodeError(f"{found} (HYDRA_FULL_ERROR=1 prints the traceback)") from error


def _files(config: Mapping[str, Any]) -> Iterator[tuple[str, Path]]:
    """Yields the files of the components that `config` names, each with its key, ``trigger`` or
    ``defense``."""
    for key, section in _SECTIONS.items():
        for target in _targets(config.get(key)):
            module = target.rpartition(".")[0]
            folder, _, name = module.removeprefix(f"{PACKAGE}.").partition(".")
            path = ROOT / folder / f"{name}.py"
            if folder == FOLDERS[section] and path.is_file():
                yield key, path


def _targets(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from [inner] if key == "_target_" and isinstance(inner, str) else _targets(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _targets(inner)


def _line(error: BaseException | None, path: Path) -> int | None:
    """Returns the number of the innermost line of the file `path` in the traceback of `error`; None
    if the file is not in the traceback."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return error.lineno
    lines = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__ if error else None)
        if frame.filename == str(path)
    ]  # fmt: skip
    return lines[-1] if lines else None
