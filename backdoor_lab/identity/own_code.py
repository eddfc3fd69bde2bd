"""Errors raised by the code of a trigger, a defense or a plug-in, which may be a user's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from backdoor_lab.core.errors import ConfigError, LabError, is_out_of_memory, reason_of
from backdoor_lab.identity import FOLDERS
from backdoor_lab.identity.sources import PACKAGE, ROOT
from backdoor_lab.plugins.location import location, source_of
from backdoor_lab.plugins.methods import GROUPS
from backdoor_lab.plugins.trust import trusted

_SECTIONS = {"trigger": "triggers", "defense": "defenses"}


class OwnCodeError(ConfigError):
    """Code of a trigger, a defense or a plug-in raised an error other than a LabError."""


def own_code_error(error: BaseException, config: Mapping[str, Any]) -> OwnCodeError | None:
    """Returns an error that names the component and the line if `error` was raised in the file of a
    trigger or defense of `config`, in a plug-in, or in code called from there.

    Returns None for all other errors, so that a bug elsewhere in this package keeps its traceback.
    Also returns None for out-of-memory errors, and for a LabError, whose message needs no addition.
    """
    if isinstance(error, LabError) or is_out_of_memory(error):
        return None
    for key, path, base in _files(config):
        where = location(error, path, base)
        if where is not None:
            chosen = f"{key}={config[key].get('name')}"
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


def _files(config: Mapping[str, Any]) -> Iterator[tuple[str, Path, Path]]:
    """Yields the files of the components that `config` names, each with its key, such as
    ``trigger``, and with the folder to which its path is shown relative. A plug-in may be a
    folder."""
    for key in GROUPS:
        for target in _targets(config.get(key)):
            plugin = trusted().plugin_of(target.partition(":")[0])
            source = None if plugin is None else source_of(trusted(), plugin)
            if source is not None:
                yield key, source, source.parent
    for key, section in _SECTIONS.items():
        for target in _targets(config.get(key)):
            module = target.rpartition(".")[0]
            folder, _, name = module.removeprefix(f"{PACKAGE}.").partition(".")
            path = ROOT / folder / f"{name}.py"
            if folder == FOLDERS[section] and path.is_file():
                yield key, path, ROOT.parent


def _targets(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            named = key in ("_target_", "factory") and isinstance(inner, str)
            yield from [inner] if named else _targets(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _targets(inner)
