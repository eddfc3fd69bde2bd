"""Locates sweep folders and their stores."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from backdoor_lab.core.errors import ConfigError, DataError
from backdoor_lab.core.paths import usable
from backdoor_lab.core.small_files import read_small

ROOT_VARIABLE = "BACKDOOR_LAB_REPORTS"
DEFAULT = "multirun_reports"
DEFAULT_SAID = f"${ROOT_VARIABLE} or {DEFAULT}"
STORE, CONFIGURATION = ".store", "multirun.yaml"
STORE_HELP = "folder of the store (default: the store of the last run, or .store next to the sweep)"
MAX_BYTES = 2**20


def roots_of(given: Sequence[Path | str]) -> list[Path]:
    """Returns the folders given on a command line, or the default folder, which need not exist.
    Raises ConfigError if a given folder does not exist."""
    roots = [usable("path", str(each)) for each in given]
    absent = [str(root) for root in roots if not root.is_dir()]
    if absent:
        raise ConfigError(f"no such folder: {', '.join(absent)}")
    return roots or [usable(ROOT_VARIABLE, os.environ.get(ROOT_VARIABLE) or DEFAULT)]


def find_store(sweep: Path, given: Path | None = None) -> Path | None:
    """Returns the folder of the sweep's store, or None if the folder does not exist.

    The folder is `given`, unless that is None; then it is the store that the sweep was run with or,
    if that does not exist, `.store` next to the sweep.

    A relative ``store.root`` is resolved from the location of the sweep, not from the current
    directory, which may have the store of another project.
    """
    roots = [_run_with(sweep), sweep.resolve().parent / STORE] if given is None else [Path(given)]
    return next((root for root in roots if root is not None and root.is_dir()), None)


def _run_with(sweep: Path) -> Path | None:
    """Returns ``store.root`` from the configuration that the sweep's last run saved next to its
    cells."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        content = OmegaConf.create(read_small(sweep / CONFIGURATION, max_bytes=MAX_BYTES).decode())
        found = OmegaConf.select(content, "store.root")
        written = OmegaConf.to_container(content)
    except (OSError, DataError, ValueError, RecursionError, OmegaConfBaseException, YAMLError):
        return None
    if not isinstance(found, str) or not found or "\0" in found:
        return None
    found = os.path.expanduser(found)
    if Path(found).is_absolute():
        return Path(found)
    started = _started_in(sweep, written)
    return None if started is None else started / found


def _started_in(sweep: Path, content: Any) -> Path | None:
    """Returns the directory that a sweep was started in, inferred from ``hydra.sweep.dir``: with
    ``runs/${name:}``, the sweep ``/a/runs/x`` was started in ``/a``. None if the setting is missing
    or does not match the path of the sweep."""
    try:
        said = Path(content["hydra"]["sweep"]["dir"]).parts
    except (KeyError, TypeError):
        return None
    lies = sweep.resolve().parts
    if not 0 < len(said) < len(lies) or said[:-1] != lies[len(lies) - len(said) : -1]:
        return None
    return Path(*lies[: len(lies) - len(said)])
