"""Reads the training set to scan: any data set of this package, or one without a test split."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backdoor_lab.core.errors import DataError, many
from backdoor_lab.core.small_files import read_small
from backdoor_lab.data.archives import members
from backdoor_lab.data.arrays import ArrayFile
from backdoor_lab.data.base import Source
from backdoor_lab.data.decode import decode_all
from backdoor_lab.data.huggingface import HuggingFace
from backdoor_lab.data.image_folder import ImageFolder
from backdoor_lab.data.layout import survey
from backdoor_lab.data.members import Folder
from backdoor_lab.data.splits import HeldOut
from backdoor_lab.scan.images import ScanImages, scan_images

COLUMNS = ("path", "label")
LISTED = 5


class _NoTestSplit(HeldOut):
    """Holds out nothing, and accepts data sets with and without test images."""

    def __init__(self) -> None:
        super().__init__(0.5, 0)

    def held_out(self, count: int, name: str) -> NDArray[np.bool_]:
        return np.zeros(count, bool)

    def check(self, has_test: bool, where: object) -> None:
        pass


def read_training_set(source: Source, size: int) -> ScanImages:
    """Reads the training images of `source`, resized to `size` x `size`. A test split is ignored
    and may be absent. Raises DataError if images cannot be read or have no labels, or if there are
    fewer than two classes."""
    if isinstance(source, ImageFolder):
        if source.root.suffix == ".csv":
            return _of_list(source, size)
        return _of_folder(source, size)
    if isinstance(source, ArrayFile | HuggingFace):
        source.held_out = _NoTestSplit()
    if isinstance(source, HuggingFace):
        source.asked = replace(source.asked, test_split=None)
        source.size = source.size or size
    arrays = source.limited()
    images = np.asarray(arrays.train.images)
    rows = [str(row) for row in range(len(images))]
    names = source.training_keys if isinstance(source, HuggingFace) else rows
    return scan_images(images, arrays.train.labels, arrays.classes, names, source.name, size)


def _of_folder(source: ImageFolder, size: int) -> ScanImages:
    inside, where = members(source.root), str(source.root)
    try:
        layout = survey(inside, _NoTestSplit()).layout
    except DataError as error:
        raise DataError(f"{error}. A scan needs labeled images: <class>/<image>") from error
    labeled = [
        (path, name)
        for name, paths in layout["train"].items()
        for path in paths[: source.limit_train]
    ]
    paths = [path for path, _ in labeled]
    contents = inside.contents(set(paths))
    return _decoded(source, contents, labeled, where, size)


def _of_list(source: ImageFolder, size: int) -> ScanImages:
    labeled = _first(listed(source.root), source.limit_train)
    inside = Folder(source.root.parent)
    where = str(source.root)
    known = inside.listing().files
    missing = [path for path, _ in labeled if path not in known]
    if missing:
        raise DataError(
            f"{where}: {many(len(missing), 'file')} of the list not found in {inside.root}:"
            f" {', '.join(missing[:LISTED])}"
        )
    contents = inside.contents({path for path, _ in labeled})
    return _decoded(source, contents, labeled, where, size)


def listed(path: Path) -> list[tuple[str, str]]:
    """Reads a .csv file with the columns path, relative to the file, and label. Returns the pairs
    in the order of the file. Raises DataError if a label is missing or a path is listed twice."""
    try:
        text = read_small(path).decode("utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not encoded in UTF-8: {error}") from error
    try:
        rows = list(csv.DictReader(io.StringIO(text), strict=True))
    except csv.Error as error:
        raise DataError(f"{path}: not a valid .csv file: {error}") from error
    if not rows or not set(COLUMNS) <= rows[0].keys():
        found = ", ".join(map(str, rows[0])) if rows else "no row"
        raise DataError(f"{path}: expected the columns path and label, found {found}")
    pairs = [((row["path"] or "").strip(), (row["label"] or "").strip()) for row in rows]
    unlabeled = [line for line, (name, label) in enumerate(pairs, 2) if not (name and label)]
    if unlabeled:
        raise DataError(
            f"{path}: {many(len(unlabeled), 'row')} without a path or a label, the first in line"
            f" {unlabeled[0]}; a scan needs the label of every image"
        )
    twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
    if twice:
        raise DataError(
            f"{path}: {many(len(twice), 'path')} listed more than once: {', '.join(twice[:LISTED])}"
        )
    return [(Path(name).as_posix(), label) for name, label in pairs]


def _first(pairs: Sequence[tuple[str, str]], limit: int | None) -> list[tuple[str, str]]:
    taken = Counter[str]()
    kept = []
    for name, label in pairs:
        taken[label] += 1
        if limit is None or taken[label] <= limit:
            kept.append((name, label))
    return kept


def _decoded(
    source: ImageFolder, contents: Any, labeled: Sequence[tuple[str, str]], where: str, size: int
) -> ScanImages:
    paths = [path for path, _ in labeled]
    found = decode_all(
        contents, paths, where, source.channels, source.size or size,
        skip_broken=source.skip_broken,
    )  # fmt: skip
    kept = [(path, name) for path, name in labeled if path in found.rows]
    classes = tuple(sorted({name for _, name in labeled}))
    numbers = {name: number for number, name in enumerate(classes)}
    rows = [found.rows[path] for path, _ in kept]
    labels = np.array([numbers[name] for _, name in kept], np.int64)
    paths = [path for path, _ in kept]
    return scan_images(found.images[rows], labels, classes, paths, source.name, size)
