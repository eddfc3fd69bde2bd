"""Finds and reads sweep folders, including cells that were requested but have no record."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from backdoor_lab.core.errors import ConfigError, DataError, many
from backdoor_lab.core.paths import usable
from backdoor_lab.core.small_files import read_json, read_small
from backdoor_lab.results.frozen import RECORDS, frozen_lines
from backdoor_lab.results.records import (
    DAMAGED,
    MISSING,
    NEEDED,
    SCHEMA,
    CellRecord,
    check_choices,
    decode,
    mapping,
    parse,
    parse_sealed,
)
from backdoor_lab.results.versions import SECTIONS, same_code, version_of

RECORD, SWEEP, TABLES = "record.json", "sweep.json", "tables"
DEPTH = 4
CONTROLS = ("none", "random", "oracle", "clean_data")


@dataclass
class Sweep:
    """The cells of a sweep folder (first the requested cells, then all others, sorted), and
    warnings."""

    folder: Path
    name: str
    command: str = ""
    cells: list[CellRecord] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def find_sweeps(root: Path, depth: int = DEPTH) -> list[Path]:
    """Returns `root` if it is a sweep, else the sweeps below it, sorted. Ignores hidden folders."""
    if not root.is_dir():
        return []
    names = _cell_names(root)
    files = chain((SWEEP, RECORDS), (f"{name}/{RECORD}" for name in names))
    if any(os.path.lexists(f"{root}/{file}") for file in files):
        return [root]
    if depth == 0:
        return []
    return [found for name in names for found in find_sweeps(root / name, depth - 1)]


def read_sweep(folder: Path, failed: Mapping[str, str] | None = None) -> Sweep:
    """Reads all cells of a sweep from its frozen records and its cell folders; if a cell has both,
    its folder is used.

    A damaged file becomes a failed cell and a warning. `failed` maps ids to the status of cells
    that failed without writing a record. Raises DataError for a frozen line whose seal does not
    match, since its cell cannot be recomputed.
    """
    failed = failed or {}
    sweep = Sweep(folder, folder.resolve().name)
    asked = _read_asked(sweep)
    kept = [parse_sealed(line) for line in frozen_lines(folder)]
    found: dict[str, tuple[CellRecord, str]] = {}
    for name in _cell_names(folder):
        cell = _read_cell(sweep, name, asked)
        if cell is not None:
            _add(sweep, found, cell, name)
    for cell in kept:
        found.setdefault(cell.id, (cell, RECORDS))
    for name, choices in asked.items():
        cell, _ = found.pop(name, (CellRecord(name, failed.get(name, MISSING), choices), ""))
        sweep.cells.append(cell)
    sweep.cells += sorted((cell for cell, _ in found.values()), key=default_order)
    sweep.cells = _without_repeats(sweep)
    return sweep


def one_sweep(text: str, hint: str = "") -> Sweep:
    """Reads the only sweep in the folder `text`. Raises ConfigError if the folder does not exist
    (with `hint` appended to the message) or does not contain exactly one sweep."""
    if not text:
        raise ConfigError(f"no such folder: ''{hint}")
    root = usable("path", text)
    if not root.is_dir():
        raise ConfigError(f"no such folder: {text}{hint}")
    found = find_sweeps(root)
    if len(found) != 1:
        more = f"; name one of {', '.join(map(str, found[:5]))}" if found else ""
        raise ConfigError(f"{text} contains {many(len(found), 'sweep')}, but one is needed{more}")
    return read_sweep(found[0])


def _without_repeats(sweep: Sweep) -> list[CellRecord]:
    """Returns the cells without repeats, since the seed of a repeat would count twice.

    A repeat is a completed cell whose id differs from that of an earlier completed cell, although
    choices, protocol, config, versions of trigger and defense, and code modifications are equal.
    Requested cells come first, so that they are kept.
    """
    if len({tuple(cell.choices.values()) for cell in sweep.cells}) == len(sweep.cells):
        return sweep.cells
    often = Counter(tuple(cell.choices.items()) for cell in sweep.cells)
    seen: dict[Any, str] = {}
    kept = []
    for cell in sweep.cells:
        chosen = tuple(cell.choices.items())
        # Performance: configs are compared only between cells with equal choices.
        config = None if often[chosen] == 1 else _without_code(cell.config)
        methods = [version_of(cell, name) for name in SECTIONS]
        same = (*chosen, *methods, *(cell.protocol or {}).items(), config)
        if cell.done and seen.setdefault(same, cell.id) != cell.id:
            sweep.warnings.append(f"{cell.id} is omitted, since {seen[same]} is the same cell")
        else:
            kept.append(cell)
    return kept


def _without_code(config: str | None) -> str | None:
    found = None if config is None else json.loads(config)
    if isinstance(found, dict):
        found["code"] = same_code(found.get("code"))
        if isinstance(found.get("protocol"), dict):
            found["protocol"].setdefault("version", 1)
    return json.dumps(found, sort_keys=True)


def default_order(cell: CellRecord) -> tuple[Any, ...]:
    """Sort key for cells that were not requested: by trigger, target and ratio, then the defense
    (spectral first, controls last)."""
    if not cell.choices:
        return (1, cell.id)
    chosen, defense = cell.choices, str(cell.choices["defense"])
    control = 1 + CONTROLS.index(defense) if defense in CONTROLS else 0
    return (
        0, str(chosen["trigger"]), str(chosen["target"]), chosen["ratio"],
        control, defense != "spectral", defense, chosen["seed"], cell.id,
    )  # fmt: skip


def cell_folders(folder: Path) -> list[Path]:
    """Returns the visible folders in `folder`, sorted. Links to folders are followed, since the
    folders are only read."""
    return [folder / name for name in _cell_names(folder)]


def _cell_names(folder: Path) -> list[str]:
    # Performance: with ten thousand cells, building a Path takes as long as reading the file.
    with os.scandir(folder) as entries:
        names = sorted(e.name for e in entries if not e.name.startswith(".") and _is_folder(e))
    return [name for name in names if name != TABLES]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # DirEntry.is_dir raises an error for a loop of links.
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _read_asked(sweep: Sweep) -> dict[str, dict[str, Any]]:
    path = sweep.folder / SWEEP
    try:
        content = mapping(SWEEP, read_json(path))
        if content.get("schema") != SCHEMA or not isinstance(content.get("asked"), list):
            raise DataError(f"`schema` must be {SCHEMA}, and `asked` must be a list")
    except FileNotFoundError:
        return {}
    except DataError as error:
        said = str(error).removeprefix(f"{path} is ")
        sweep.warnings.append(f"{path}: {said}. Cells without a record cannot be shown as missing")
        return {}
    sweep.name = str(content.get("name") or sweep.name)
    sweep.command = str(content.get("command") or "")
    return dict(_asked_cells(sweep, content["asked"]))


def _asked_cells(sweep: Sweep, asked: list[Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for position, entry in enumerate(asked):
        name = entry.get("id") if isinstance(entry, dict) else None
        if not isinstance(name, str):
            name = f"asked[{position}]"
        try:
            yield name, check_choices(mapping(f"`asked[{position}]`", entry).get("choices"))
        except DataError as error:
            sweep.warnings.append(f"{sweep.folder / SWEEP}: asked[{position}]: {error}")
            yield name, {}


def _read_cell(sweep: Sweep, name: str, asked: dict[str, dict[str, Any]]) -> CellRecord | None:
    path = f"{sweep.folder}/{name}/{RECORD}"
    try:
        data = read_small(path)
    except FileNotFoundError:
        return None
    except DataError as error:
        reason = str(error).removeprefix(f"{path} ").removeprefix("is ")
        return _damaged(sweep, Path(path), reason, b"", asked)
    try:
        return parse(data)
    except DataError as error:
        return _damaged(sweep, Path(path), str(error), data, asked)


def _damaged(
    sweep: Sweep, path: Path, reason: str, data: bytes, asked: dict[str, dict[str, Any]]
) -> CellRecord:
    """Returns a failed cell for a damaged record, with the choices from the sweep's list of cells
    or from the damaged text."""
    sweep.warnings.append(f"damaged record {path}: {reason}")
    name, choices = path.parent.name, asked.get(path.parent.name, {})
    with suppress(DataError):
        choices = choices or check_choices(mapping("", decode(data)).get("choices"))
    return CellRecord(name, DAMAGED, choices if all(key in choices for key in NEEDED) else {})


def _add(
    sweep: Sweep, found: dict[str, tuple[CellRecord, str]], cell: CellRecord, folder: str
) -> None:
    """Adds a cell unless its id is already present, so that the seed of a cell does not count twice
    if the cell's folder was copied."""
    other = found.get(cell.id)
    if other is None:
        found[cell.id] = (cell, folder)
        return
    kept, left = other, (cell, folder)
    if folder == cell.id:
        kept, left = left, kept
    found[cell.id] = kept
    sweep.warnings.append(
        f"{sweep.folder / left[1]}: this second record of {cell.id} is omitted; the one in"
        f" {kept[1]} is used"
    )
