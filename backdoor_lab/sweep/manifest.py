"""The requested cells of a sweep, and which of them are done. Reads only small files."""

from __future__ import annotations

import json
import logging
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backdoor_lab.core.atomic_io import room
from backdoor_lab.core.errors import ConfigError, DataError, LabError, failed_status
from backdoor_lab.core.small_files import (
    DamagedFileError,
    UnreadableFileError,
    clear_file,
    clear_folder,
    read_json,
    read_or_set_aside,
    read_small,
    set_aside,
)
from backdoor_lab.results.records import DAMAGED, DONE, SCHEMA, CellRecord, decode, mapping, parse
from backdoor_lab.results.seal import write_sealed

log = logging.getLogger(__name__)
HALT = ".halted"
"""The name of a file in a sweep's folder: while this file exists, no cell starts. The file is
created when a cell fails while `fail_fast` is set."""
DIVERGED = ".diverged"
"""The name of a folder in a sweep's folder, with a file for each stage that diverged in this run
(see Store)."""
RECORD, SWEEP = "record.json", "sweep.json"
OWN_FILES = (
    ".hydra/config.yaml", ".hydra/hydra.yaml", ".hydra/overrides.yaml", "backdoor_lab.log",
    "running.json",
)  # fmt: skip
WHOLE = {"nat1", "n_poisoned", "pois_left"}
"""The metrics that every record with status ``done`` must contain. The counts of poison are null if
the ground truth of a poisoned data set is unknown."""


@dataclass(frozen=True)
class RequestedCell:
    """A requested cell: its id, its choices, the inputs that determine its poison, its overrides,
    how often it is retried, and whether its failure stops the sweep."""

    id: str
    choices: dict[str, Any]
    attack: dict[str, Any]
    overrides: tuple[str, ...]
    retries: int = 1
    fail_fast: bool = False

    @property
    def options(self) -> dict[str, str]:
        """The overrides as a dict from name to value, as text."""
        pairs = (each.lstrip("+").partition("=") for each in self.overrides)
        return {name: value for name, _, value in pairs}


def swept(asked: Sequence[RequestedCell], keys: Iterable[Hashable]) -> list[str]:
    """The names of the overrides that differ between cells with the same key. `keys`: how each
    cell is displayed, such as a row of text."""
    alike: dict[Hashable, list[RequestedCell]] = {}
    for each, key in zip(asked, keys, strict=True):
        alike.setdefault(key, []).append(each)
    groups = [[each.options for each in cells] for cells in alike.values() if len(cells) > 1]
    names = [
        name
        for group in groups
        for name in dict.fromkeys(name for options in group for name in options)
        if len({options.get(name) for options in group}) > 1
    ]
    return list(dict.fromkeys(names))


def distinguishing_options(asked: Sequence[RequestedCell]) -> dict[str, str]:
    """Maps the ids of those cells whose ids differ only in the hash to the overrides in which they
    differ, as text: ``trigger.size=3``. Empty if there are no such cells."""
    keys = [each.id.rpartition("-")[0] for each in asked]
    names, counts = swept(asked, keys), Counter(keys)
    return {
        each.id: " ".join(f"{name}={each.options[name]}" for name in names if name in each.options)
        for each, key in zip(asked, keys, strict=True)
        if counts[key] > 1
    }


def clear_way(folder: Path) -> None:
    """Set aside whatever keeps Hydra or a cell from writing to the cell's folder: a file in place
    of a folder, or a directory or pipe in place of a file."""
    for path in (folder, folder / ".hydra"):
        clear_folder(path)
    for name in OWN_FILES:
        clear_file(folder / name)


def command_line() -> str:
    """The command line of this process, quoted for a shell."""
    return " ".join(["python -m backdoor_lab", *map(shlex.quote, sys.argv[1:])])


def status_of(folder: Path) -> str | None:
    """The status in a cell's record, as shown in tables. None if there is no record."""
    try:
        found = read_record(folder)
    except DataError:
        return DAMAGED
    return None if found is None else found.status


def finished(folder: Path, cell_id: str, *, quiet: bool = False) -> bool:
    """Whether `folder` contains a record of this cell with status ``done``.

    For a damaged record, logs a warning unless `quiet` and returns False, so that the cell is run
    again. Raises ConfigError if the record belongs to another cell, and UnreadableFileError if it
    cannot be read but may be intact.
    """
    try:
        found = read_record(folder)
    except DataError as error:
        if isinstance(error, UnreadableFileError) and not isinstance(error, DamagedFileError):
            raise
        if not quiet:
            log.warning("damaged record in %s: %s; the cell will be run again", folder, error)
        return False
    if found is None:
        return False
    if found.id != cell_id:
        raise ConfigError(
            f"{folder} contains the record of {found.id}, but this cell is {cell_id}: use another"
            " folder (hydra.run.dir or hydra.sweep.dir), or the default"
        )
    return found.done


def mend(folder: Path) -> None:
    """If the record in a cell's folder is damaged, set it aside (rename it)."""
    path = folder / RECORD
    try:
        read_record(folder)
    except DataError as error:
        set_aside(path, f"damaged record: {_told(error, path)}")


def read_record(folder: Path) -> CellRecord | None:
    """Read the record in a folder. Returns None if there is none; raises DataError if it is
    damaged."""
    try:
        data = read_small(folder / RECORD)
    except FileNotFoundError:
        return None
    found = parse(data)
    lacking = sorted(WHOLE - found.numbers.keys()) if found.done else []
    if lacking and "nat1" not in lacking:
        counts = decode(data)["counts"]
        lacking = [name for name in lacking if counts.get(name, 0) is not None]
    if lacking:
        raise DataError(f"the status is done, but values are missing: {', '.join(lacking)}")
    if b"NaN" in data or b"Infinity" in data:
        json.loads(data, parse_constant=_refuse)
    return found


def _told(error: DataError, path: Path) -> str:
    return str(error).removeprefix(f"{path} is ")


def _refuse(name: str) -> None:
    raise DataError(f"{name} is not a valid number")


def halt(folder: Path) -> None:
    """Keep all processes from starting further cells of the sweep in `folder`."""
    with room(folder / HALT):
        (folder / HALT).touch()


def halted(folder: Path) -> bool:
    """Whether a cell of the sweep in `folder` has failed while `fail_fast` was set."""
    return (folder / HALT).exists()


def forget_failures(folder: Path) -> None:
    """Clear what earlier commands recorded about failed and diverged cells, so that these
    cells run again."""
    clear_file(folder / HALT)
    (folder / HALT).unlink(missing_ok=True)
    clear_folder(folder / DIVERGED)
    shutil.rmtree(folder / DIVERGED, ignore_errors=True)


def sweep_file(folder: Path) -> dict[str, Any]:
    """Read the sweep.json in a sweep's folder. Returns an empty dict if it is missing or
    damaged."""
    try:
        found = read_json(folder / SWEEP)
        _check_sweep(found)
    except (FileNotFoundError, DataError):
        return {}
    return dict(found)


def _check_sweep(value: Any) -> None:
    asked = mapping("a sweep's list", value).get("asked")
    if not isinstance(asked, list) or not all(_is_asked(each) for each in asked):
        raise DamagedFileError("`asked` must be a list of cells, each with an `id`")


def _is_asked(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("id"), str)


def merge_asked(folder: Path, asked: Sequence[RequestedCell]) -> list[dict[str, Any]]:
    """All cells that this command or an earlier one requested in this folder, without duplicates.
    Sets a damaged sweep.json aside."""
    before = read_or_set_aside(folder / SWEEP, _check_sweep) or {"asked": []}
    old = {each["id"]: each for each in before["asked"]}
    new = {each.id: {"id": each.id, "choices": each.choices} for each in asked}
    return list({**old, **new}.values())


def note_failure(folder: Path, reason: str, status: str | None = None) -> str:
    """Write the record of a cell that failed before it could write a record. Returns the status.

    If the record cannot be written, logs the reason.
    """
    status = status or failed_status(reason)
    asked = sweep_file(folder.parent).get("asked", [])
    choices = next((each["choices"] for each in asked if each["id"] == folder.name), None)
    if choices is None or status_of(folder) == DONE:
        return status
    record = {"schema": SCHEMA, "id": folder.name, "choices": choices}
    record |= {"status": status, "error": reason}
    try:
        clear_folder(folder)
        write_sealed(folder / RECORD, record)
    except (OSError, LabError) as error:
        log.error("%s: its failure could not be recorded: %s", folder.name, error)
    return status


def place(folder: Path, cell_id: str) -> str:
    """The position of a cell among all cells of a sweep's folder, as the start of a title: ``3/12
    in folder: `` for the third of twelve cells; empty for the only cell."""
    ids = [each["id"] for each in sweep_file(folder).get("asked", [])]
    several = cell_id in ids and len(ids) > 1
    return f"{ids.index(cell_id) + 1}/{len(ids)} in folder: " if several else ""


def spread(left: Sequence[RequestedCell]) -> list[RequestedCell]:
    """Reorder the cells so that consecutive cells have different attacks.

    Cells with the same attack need the same network: if they ran in parallel, all but one would
    wait for it.
    """
    seen: dict[str, int] = {}
    ranks = []
    for each in left:
        key = json.dumps([each.attack, each.choices["model"], each.choices["recipe"]])
        seen[key] = seen.get(key, -1) + 1
        ranks.append(seen[key])
    return [left[i] for i in sorted(range(len(left)), key=lambda i: (ranks[i], i))]
