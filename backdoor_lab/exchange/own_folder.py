"""Reads poisoned data sets of this package in folders of PNG files, as the Hugging Face Hub reads
them: <split>/metadata.csv and the images that it names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from backdoor_lab.core.errors import DataError
from backdoor_lab.core.types import ImportedAttack
from backdoor_lab.data.base import Arrays, Split
from backdoor_lab.data.hub.csv_file import csv_rows
from backdoor_lab.data.members import safe_path
from backdoor_lab.exchange.layouts import (
    ELSEWHERE,
    FILE_NAME,
    IS_COVER,
    IS_POISON,
    LABEL,
    METADATA,
    SOURCE_INDEX,
    SPLIT,
    SPLITS,
    TRAIN_COLUMNS,
)
from backdoor_lab.exchange.own_arrays import absent, check_marks, no_images
from backdoor_lab.exchange.own_files import contents, files_in, png_images

COLUMNS = (FILE_NAME, *TRAIN_COLUMNS, SPLIT)
MAX_BYTES = 1 << 30
"""The maximum size of a metadata.csv in bytes."""
_FLAGS = {"true": True, "false": False}
_NUMBER = re.compile(r"-1|\d{1,18}", re.ASCII)


def is_folder(root: Path) -> bool:
    """Whether `root` holds the files of this layout."""
    return (root / SPLITS[0] / METADATA).is_file()


def read_folder(root: Path, classes: tuple[str, ...]) -> tuple[Arrays, list[str]]:
    """Returns the poisoned set in `root`, as its files state it, and the paths of these files.
    Labels are indices into `classes`; names that are not among them are appended.

    Raises DataError for missing columns, values of another type, rows of another split, paths that
    are unsafe or listed twice, and images that are missing or not as `png_images` requires;
    `own_arrays` checks the rest.
    """
    files: list[str] = []
    names = {name: number for number, name in enumerate(classes)}
    found = {}
    for split in SPLITS:
        path = f"{split}/{METADATA}"
        if split == SPLITS[0] or (root / path).exists():
            found[split] = _split(root, split, names)
            files += [path, *found[split].pop("files")]
    train, test, triggered = (found.get(split) for split in SPLITS)
    assert train is not None
    attack = ImportedAttack(
        is_poison=train[IS_POISON], is_cover=train[IS_COVER], source_index=train[SOURCE_INDEX],
    )  # fmt: skip
    if triggered is not None:
        attack = ImportedAttack(
            attack.is_poison, attack.is_cover, attack.source_index, triggered["images"],
            triggered[LABEL], triggered[SOURCE_INDEX], triggered[ELSEWHERE],
        )  # fmt: skip
    images = train["images"]
    empty = no_images(images)
    tests = empty if test is None else Split(test["images"], test[LABEL])
    return Arrays(Split(images, train[LABEL]), tests, tuple(names), attack), files


def _split(root: Path, split: str, names: dict[str, int]) -> dict[str, Any]:
    """The images of one split, the columns as arrays, and the paths of the images."""
    path = root / split / METADATA
    columns = COLUMNS if split != SPLITS[2] else (*COLUMNS, ELSEWHERE)
    rows = _rows(path, columns)
    paths = [f"{split}/{safe_path(name, path)}" for name in rows[FILE_NAME]]
    if len(set(paths)) < len(paths):
        seen = set[str]()
        twice = next(each for each in paths if each in seen or seen.add(each))  # type: ignore[func-returns-value]
        raise DataError(f"{path}: {twice} is listed twice")
    other = next((value for value in rows[SPLIT] if value != split), None)
    if other is not None:
        raise DataError(f"{path}: `{SPLIT}` must be {split} in all rows, got {other!r}")
    found: dict[str, Any] = {
        LABEL: np.array([names.setdefault(name, len(names)) for name in rows[LABEL]], np.int64),
        SOURCE_INDEX: np.array(
            [_number(value, row, path) for row, value in enumerate(rows[SOURCE_INDEX])], np.int64
        ),
    }
    for name in (IS_POISON, IS_COVER, *columns[len(COLUMNS) :]):
        values = [_flag(value, name, row, path) for row, value in enumerate(rows[name])]
        found[name] = np.array(values, bool)
    if split != SPLITS[0]:
        check_marks(found, path)
    files_in(root, paths)
    return found | {"images": png_images(contents(root, paths), paths, root), "files": paths}


def _rows(path: Path, columns: tuple[str, ...]) -> dict[str, list[str]]:
    """The values of each of `columns`."""
    header, rows = csv_rows(path, max_bytes=MAX_BYTES)
    for name in columns:
        if header.count(name) != 1:
            raise absent(path, f"single column `{name}`", header)
    return {name: [row[header.index(name)] for row in rows] for name in columns}


def _flag(value: str, name: str, row: int, path: Path) -> bool:
    if value not in _FLAGS:
        raise DataError(f"{path}: `{name}` must be true or false, got {value!r} in row {row}")
    return _FLAGS[value]


def _number(value: str, row: int, path: Path) -> int:
    if not _NUMBER.fullmatch(value):
        raise DataError(
            f"{path}: `{SOURCE_INDEX}` must be a whole number or -1, got {value!r} in row {row}"
        )
    return int(value)
