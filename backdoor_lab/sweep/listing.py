"""What a sweep was asked for and which of its cells are done; reads small files only."""

from __future__ import annotations

import json
import logging
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backdoor_lab.errors import ConfigError, DataError
from backdoor_lab.reports.records import DAMAGED, Cell, decode, parse

log = logging.getLogger(__name__)
OUT_OF_MEMORY = "failed: oom"
"""The status of a cell for which memory did not suffice."""
HALT = ".halted"
"""Lies in a sweep's folder once a cell has failed under `fail_fast`: no other cell starts."""
DIVERGED = ".diverged"
"""In a sweep's folder: the stages that diverged in this run of the command (see Store)."""
WHOLE = {"nat1", "n_poisoned", "pois_left"}
"""What every done cell has measured."""


@dataclass(frozen=True)
class Asked:
    """One cell of a sweep: its id, its choices, what decides its poison, its overrides, and what
    happens when it fails."""

    id: str
    choices: dict[str, Any]
    attack: dict[str, Any]
    overrides: tuple[str, ...]
    retries: int = 1
    fail_fast: bool = False


def command_line() -> str:
    """The command that this process was started with, as one would type it."""
    return " ".join(["python -m backdoor_lab", *map(shlex.quote, sys.argv[1:])])


def status_of(folder: Path) -> str | None:
    """The status in a cell's record, as tables show it; None without one."""
    try:
        found = _read(folder)
    except DataError:
        return DAMAGED
    return None if found is None else found.status


def finished(folder: Path, cell_id: str) -> bool:
    """Whether a folder holds the record of this very cell, done; a failed one is tried again, and
    so is a damaged one, with a warning.

    Raises ConfigError when it holds another cell's, damaged or not.
    """
    try:
        found = _read(folder)
    except DataError as error:
        _check_owner(folder, _name(folder), cell_id)
        log.warning("damaged record in %s: %s; the cell is asked for again", folder, error)
        return False
    if found is None:
        return False
    _check_owner(folder, found.id, cell_id)
    return found.done


def _check_owner(folder: Path, name: str | None, cell_id: str) -> None:
    if name not in (None, cell_id):
        raise ConfigError(
            f"{folder} holds the record of {name}, and this cell is {cell_id}: give another"
            " folder (hydra.run.dir or hydra.sweep.dir), or leave it to the default"
        )


def _name(folder: Path) -> str | None:
    """The id in a damaged record; None where none can be read."""
    try:
        record = decode((folder / "record.json").read_bytes())
    except (OSError, DataError):
        return None
    return str(record["id"]) if isinstance(record, dict) and "id" in record else None


def _read(folder: Path) -> Cell | None:
    """The record in a folder; None without one. Raises DataError where it is damaged."""
    try:
        data = (folder / "record.json").read_bytes()
    except OSError:
        return None
    found = parse(data)
    lacking = sorted(WHOLE - found.numbers.keys()) if found.done else []
    if lacking:
        raise DataError(f"done, but without {', '.join(lacking)}")
    if b"NaN" in data or b"Infinity" in data:
        json.loads(data, parse_constant=_refuse)
    return found


def _refuse(name: str) -> None:
    raise DataError(f"{name} stands in place of a number")


def halt(folder: Path) -> None:
    """From now on no cell of the sweep in `folder` starts, in whatever process."""
    (folder / HALT).touch()


def halted(folder: Path) -> bool:
    """Whether a cell of this sweep has failed under `fail_fast`."""
    return (folder / HALT).exists()


def forget_failures(folder: Path) -> None:
    """What failed in an earlier command of a sweep, or diverged, is tried anew by the next."""
    (folder / HALT).unlink(missing_ok=True)
    shutil.rmtree(folder / DIVERGED, ignore_errors=True)


def sweep_file(folder: Path) -> dict[str, Any]:
    """The content of a sweep's sweep.json, empty when there is none."""
    try:
        found = json.loads((folder / "sweep.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def merge_asked(folder: Path, asked: Sequence[Asked]) -> list[dict[str, Any]]:
    """What was asked for before in this folder, and now, each cell once."""
    old = {str(each["id"]): each for each in sweep_file(folder).get("asked", [])}
    new = {each.id: {"id": each.id, "choices": each.choices} for each in asked}
    return list({**old, **new}.values())


def place(folder: Path, cell_id: str) -> str:
    """``3/12`` for the third of twelve cells."""
    ids = [each["id"] for each in sweep_file(folder).get("asked", [])]
    return f"{ids.index(cell_id) + 1}/{len(ids)}" if cell_id in ids else "1/1"
