"""What a sweep was asked for and which of its cells are done; reads small files only."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backdoor_lab.errors import ConfigError


@dataclass(frozen=True)
class Asked:
    """One cell of a sweep: its id, its choices, what decides its poison, its overrides."""

    id: str
    choices: dict[str, Any]
    attack: dict[str, Any]
    overrides: tuple[str, ...]


def command_line() -> str:
    """The command that this process was started with, as one would type it."""
    return " ".join(["python -m backdoor_lab", *map(shlex.quote, sys.argv[1:])])


def status_of(folder: Path) -> str | None:
    """The status in a cell's record; None without one, or when it cannot be read."""
    try:
        status = json.loads((folder / "record.json").read_bytes())["status"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return str(status)


def finished(folder: Path, cell_id: str) -> bool:
    """Whether a folder holds the record of this very cell, done; a failed one is tried again.

    Raises ConfigError when it holds another cell's.
    """
    try:
        record = json.loads((folder / "record.json").read_bytes())
    except (OSError, ValueError):
        return False
    if not isinstance(record, dict) or record.get("id", cell_id) == cell_id:
        return isinstance(record, dict) and record.get("status") == "done"
    raise ConfigError(
        f"{folder} holds the record of {record['id']}, and this cell is {cell_id}: give another"
        " folder (hydra.run.dir or hydra.sweep.dir), or leave it to the default"
    )


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
