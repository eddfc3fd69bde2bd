"""Data sets in Parquet files, as the Hugging Face Hub stores them. Needs pyarrow."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from backdoor_lab.core.errors import DataError
from backdoor_lab.data.hub.columns import columns_of, features_of
from backdoor_lab.data.hub.found import Asked
from backdoor_lab.data.hub.parquet import column_size, opened
from backdoor_lab.data.hub.tables import Table
from backdoor_lab.data.limits import check_memory

ENDING = ".parquet"
_SHARD = re.compile(r"(.+?)-(\d{5})-of-(\d{5})(?:-[0-9a-f]{16})?")
Place = tuple[str, str]
"""A folder and a split whose files are in this folder or, without the split in their names, in its
folder of this name."""


class ParquetTable(Table):
    """The rows of Parquet files, one after the other."""

    def __init__(self, root: Path, files: list[str], folder: str) -> None:
        self.root, self.files, self.folder = root, files, folder
        for path in files:
            with opened(root / path) as file:
                schema = file.schema_arrow
            if path == files[0]:
                self.schema = schema
            elif not _alike(schema, self.schema):
                raise DataError(
                    f"{root / path}: the columns are not those of {files[0]} in the same split:"
                    f" {', '.join(map(' '.join, columns_of(schema).items()))}"
                )

    def batches(self, column: str, size: int) -> Iterator[tuple[str, int, Any]]:
        for path in self.files:
            row = 0
            with opened(self.root / path) as file:
                groups = range(file.num_row_groups)
                largest = max((column_size(file, column, at) for at in groups), default=0)
                check_memory(largest, self.root / path, "write smaller row groups")
                for batch in file.iter_batches(size, columns=[column], use_threads=False):
                    yield path, row, batch.column(0)
                    row += len(batch)


def parquet_tables(
    root: Path, paths: Iterable[str], asked: Asked
) -> tuple[dict[str, ParquetTable], list[str]]:
    """Returns a table for "train" and, if there is one, for "test", and the names of all splits.
    `paths` are relative to `root`.

    The split of a file is in its name (``train-00000-of-00002.parquet``, ``train.parquet``) or in
    that of its folder (``train/0000.parquet``). Raises DataError if there is no training split, if
    one of the files of a split is missing, or if several folders have the same split.
    """
    places: dict[Place, list[str]] = {}
    for path in sorted(paths):
        places.setdefault(_place(path, asked), []).append(path)
    there = sorted({split for _, split in places})
    asked.check(there, root)
    found = {}
    for key, split in asked.splits.items():
        folders = sorted(folder for folder, name in places if name == split)
        if len(folders) > 1:
            raise DataError(
                f"{root}: split {split} is in several folders: {', '.join(folders)}; set"
                " `dataset.root` to the one to use, such as"
                f" dataset.root={root / folders[0]}"
            )
        if folders:
            files = places[folders[0], split]
            _check_complete(root, files)
            found[key] = ParquetTable(root, files, PurePosixPath(folders[0]).name)
    return found, there


def _place(path: str, asked: Asked) -> Place:
    pure = PurePosixPath(path)
    folder, stem = pure.parent, pure.name[: -len(ENDING)]
    if found := _SHARD.fullmatch(stem):
        return str(folder), found[1]
    inside = folder.name in asked.splits.values() or stem.isdigit()
    if inside and folder.name and stem not in asked.splits.values():
        return str(folder.parent), folder.name
    return str(folder), stem


def _check_complete(root: Path, files: list[str]) -> None:
    """Raises DataError unless all files of a split are there that their names count."""
    shards = [_SHARD.fullmatch(PurePosixPath(path).name[: -len(ENDING)]) for path in files]
    counts = {each and each[3] for each in shards}
    numbers = sorted(int(each[2]) for each in shards if each)
    if counts == {None}:
        return
    if len(counts) > 1 or numbers != list(range(int(max(map(str, counts))))):
        raise DataError(
            f"{root}: the files {files[0]} to {files[-1]} are not one complete split:"
            f" {len(files)} of {' or '.join(sorted(map(str, counts)))} are there"
        )


def _alike(schema: Any, other: Any) -> bool:
    return bool(schema.equals(other)) and features_of(schema) == features_of(other)
