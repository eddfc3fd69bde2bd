"""Data sets whose images are in a column of a table, read in batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from backdoor_lab.core.errors import DataError
from backdoor_lab.data.hub.card import card_names
from backdoor_lab.data.hub.columns import (
    features_of,
    image_column,
    image_content,
    label_column,
    names_in,
)
from backdoor_lab.data.hub.found import Asked, Found, Rows
from backdoor_lab.data.hub.labels import encoded
from backdoor_lab.data.members import Content

BATCH = 64
"""The number of rows of images in memory at a time; more may be, up to one row group of a file."""
LABEL_BATCH = 1 << 16


class Table(ABC):
    """The table of one split. `schema` is its Arrow schema, `folder` the name of the folder of its
    files, and `files` are these files."""

    schema: Any
    folder: str
    files: list[str]

    @abstractmethod
    def batches(self, column: str, size: int) -> Iterator[tuple[str, int, Any]]:
        """Yields at most `size` rows of a column at a time: the name of the part of the table that
        holds them, the number in it of the first of these rows, and the values as an Arrow
        array."""


def table_data_set(
    root: Path,
    tables: Mapping[str, Table],
    asked: Asked,
    there: Sequence[str],
    not_used: Sequence[str],
) -> Found:
    """Returns the data set in `tables`, which maps "train" and possibly "test" to a
    table; `there` are the names of all splits. Raises
    DataError if columns are missing or differ between the splits, and for unusable labels."""
    schema = tables["train"].schema
    image = image_column(schema, asked.image, root)
    label = label_column(schema, asked.label, root)
    names = _names(tables["train"], label, root)
    for split, table in tables.items():
        where = f"{root}, split {asked.splits[split]}"
        image_column(table.schema, image, where)
        label_column(table.schema, label, where)
        if _names(table, label, root) != names:
            raise DataError(f"{where}: column `{label}`: the names of the classes are not those of"
                            f" {asked.train_split}")  # fmt: skip
    columns = {split: _labels(table, label) for split, table in tables.items()}
    labels, classes = encoded(columns, names)
    splits = {split: Rows(keys, labels[split]) for split, (keys, _) in columns.items()}

    def contents(wanted: Container[str]) -> Iterator[tuple[str, Content]]:
        for table in tables.values():
            for part, first, values in table.batches(image, BATCH):
                for at, value in enumerate(values, first):
                    key = _key(part, at)
                    if key in wanted:
                        yield key, image_content(value.as_py(), f"{root}: {key}")

    files = [path for table in tables.values() for path in table.files]
    return Found(classes, splits, contents, files, there, not_used)


def _names(table: Table, label: str, root: Path) -> tuple[str, ...] | None:
    found = names_in(features_of(table.schema).get(label))
    return card_names(root, label, table.folder) if found is None else found


def _labels(table: Table, label: str) -> tuple[list[str], list[Any]]:
    keys: list[str] = []
    labels: list[Any] = []
    for part, first, values in table.batches(label, LABEL_BATCH):
        keys += [_key(part, at) for at in range(first, first + len(values))]
        labels += values.to_pylist()
    return keys, labels


def _key(part: str, row: int) -> str:
    return f"{part}, row {row}"
