"""Data sets of image files in folders: <split>/<class>/<image>, or with metadata.csv or
metadata.jsonl."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from backdoor_lab.core.errors import DataError, many
from backdoor_lab.core.small_files import DamagedFileError, decode, read_small
from backdoor_lab.data.hub.card import card_names
from backdoor_lab.data.hub.columns import LABEL, chosen
from backdoor_lab.data.hub.csv_file import csv_rows
from backdoor_lab.data.hub.found import Asked, Found, Rows
from backdoor_lab.data.hub.labels import encoded
from backdoor_lab.data.kinds import has_image_ending
from backdoor_lab.data.layout import SplitNames, hidden, survey
from backdoor_lab.data.members import Folder, Listing, safe_path
from backdoor_lab.data.splits import HeldOut

METADATA = ("metadata.csv", "metadata.jsonl")
FILE_NAME = "file_name"
MAX_BYTES = 1 << 28
"""The maximum size of a metadata file in bytes."""


def metadata_files(listing: Listing) -> list[str]:
    """Returns the paths of all metadata files."""
    return sorted(
        path for path in listing.files if PurePosixPath(path).name in METADATA and not hidden(path)
    )


def folder_data_set(inside: Folder, held_out: HeldOut, asked: Asked) -> Found:
    """Returns a data set without metadata files, as `survey` reads it."""
    tests = () if asked.test_split is None else (asked.test_split,)
    hint = " (`dataset.train_split` and `dataset.test_split` choose other splits)"
    found = survey(inside, held_out, SplitNames((asked.train_split,), tests, hint))
    classes = tuple(sorted({name for split in found.layout.values() for name in split}))
    splits = {}
    for split, by_class in found.layout.items():
        keys = [path for name in by_class for path in by_class[name]]
        labels = [classes.index(name) for name in by_class for _ in by_class[name]]
        splits[split] = Rows(keys, np.array(labels, np.int64))
    files = [path for rows in splits.values() for path in rows.keys]
    return Found(classes, splits, inside.contents, files, (), found.not_used)


def metadata_data_set(inside: Folder, listing: Listing, asked: Asked) -> Found:
    """Returns a data set whose images are listed in metadata files, with paths relative to each
    file. The split of an image is the first folder in its path with the name of a split; if no
    image is in such a folder, all images are training images.

    Raises DataError for missing columns and labels, for paths that are unsafe, remote, missing or
    listed twice, and for images in the used splits that no file lists.
    """
    root = inside.root
    rows: dict[str, Any] = {}
    files = metadata_files(listing)
    label = ""
    for path in files:
        label, found = _labeled(root, path, asked)
        for name, value in found.items():
            if name in rows:
                raise DataError(f"{root / path}: {name} is also listed in another metadata file")
            rows[name] = value
    _check_present(root, rows, listing)
    wanted = asked.splits.values()
    split_of = {name: _split(name, tuple(wanted)) for name in rows}
    if not any(split_of.values()):
        split_of = dict.fromkeys(rows, asked.train_split)
    there = sorted({*filter(None, split_of.values()), *_others(split_of)})
    asked.check(there, root)
    columns = {}
    for split, name in asked.splits.items():
        keys = [path for path in rows if split_of[path] == name]
        if keys:
            columns[split] = (keys, [rows[path] for path in keys])
    _check_listed(root, rows, listing, tuple(wanted))
    labels, classes = encoded(columns, card_names(root, label, ""))
    splits = {split: Rows(list(keys), labels[split]) for split, (keys, _) in columns.items()}
    used = [path for rows_ in splits.values() for path in rows_.keys]
    return Found(classes, splits, inside.contents, [*files, *used], there)


def _labeled(root: Path, path: str, asked: Asked) -> tuple[str, dict[str, Any]]:
    """Returns the name of the column of labels, and the label of each image by its path relative to
    `root`, in the order of the file."""
    where = root / path
    header, rows = _table(where)
    columns = dict.fromkeys(header, "")
    names = [name for name in header if name.endswith(FILE_NAME)]
    given = asked.image
    if given is not None and given not in header:
        given = FILE_NAME if given == "image" else f"{given}_{FILE_NAME}"
    image = chosen("image", given, names, columns, where)
    others = [name for name in header if not name.endswith(FILE_NAME)]
    found = [LABEL] if LABEL in others and asked.label is None else others
    label = chosen(LABEL, asked.label, found, columns, where)
    folder = PurePosixPath(path).parent
    labels: dict[str, Any] = {}
    for number, row in enumerate(rows):
        name = row.get(image)
        if not isinstance(name, str) or not name:
            raise DataError(f"{where}: row {number} has no `{image}`")
        if "://" in name:
            raise DataError(
                f"{where}: row {number}: {name!r} is a remote address; remote files are not read:"
                " download them and list their paths"
            )
        place = str(folder / safe_path(name, where))
        if place in labels:
            raise DataError(f"{where}: {name} is listed twice")
        labels[place] = row.get(label)
    return label, labels


def _table(path: Path) -> tuple[list[str], list[dict[str, Any]]]:
    if path.suffix == ".csv":
        header, rows = csv_rows(path, max_bytes=MAX_BYTES)
        return header, [dict(zip(header, row, strict=True)) for row in rows]
    found = []
    try:
        lines = read_small(path, max_bytes=MAX_BYTES).split(b"\n")
    except DamagedFileError as error:
        raise DataError(str(error)) from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = decode(line)
        except DamagedFileError as error:
            raise DataError(f"{path}: line {number} is {error}") from error
        if not isinstance(row, dict):
            raise DataError(
                f"{path}: line {number} must be a JSON object, got {json.dumps(row)[:60]}"
            )
        found.append(row)
    return list(dict.fromkeys(key for row in found for key in row)), found


def _split(path: str, names: tuple[str, ...]) -> str | None:
    return next((part for part in PurePosixPath(path).parts[:-1] if part in names), None)


def _others(split_of: dict[str, str | None]) -> set[str]:
    """Returns the folders of images that are in no split that is read."""
    paths = (PurePosixPath(path) for path, split in split_of.items() if split is None)
    return {path.parts[0] for path in paths if len(path.parts) > 1}


def _check_present(root: Path, rows: dict[str, Any], listing: Listing) -> None:
    missing = [path for path in rows if path not in listing.files]
    if missing:
        raise DataError(
            f"{root}: {many(len(missing), 'image')} listed in the metadata cannot be found; the"
            f" first is {missing[0]}"
        )


def _check_listed(
    root: Path, rows: dict[str, Any], listing: Listing, names: tuple[str, ...]
) -> None:
    """Raises DataError if a split that is read contains an image that no metadata file lists."""
    spare = sorted(
        path
        for path in listing.files
        if path not in rows and has_image_ending(path) and not hidden(path) and _split(path, names)
    )
    if spare:
        raise DataError(
            f"{root}: the metadata does not list {many(len(spare), 'image')} in the folders of the"
            f" splits; the first is {spare[0]}: list or remove them"
        )
