"""Writes a poisoned data set as PNG files with a metadata.csv per split: an image folder as the
library `datasets` of Hugging Face reads it."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Any

from backdoor_lab.core.errors import ConfigError
from backdoor_lab.data.base import Arrays
from backdoor_lab.exchange.layouts import FILE_NAME, LABEL, METADATA, SPLIT, TRAIN_COLUMNS
from backdoor_lab.exchange.splits import Table, png, png_name, tables

LARGEST = 500_000
"""The largest number of images, because the card lists the hash of every file."""
_FIRST = TRAIN_COLUMNS
_SAFE = re.compile(r"\w[\w +.,-]{0,63}(?<![ .])", re.ASCII)


def write_folder(folder: Path, arrays: Arrays) -> None:
    """Writes the splits to the existing folder `folder`. Raises ConfigError for more than `LARGEST`
    images."""
    splits = list(tables(arrays))
    if (n := sum(len(each.images) for each in splits)) > LARGEST:
        raise ConfigError(
            f"the layout `folder` holds at most {LARGEST:,} images, got {n:,}: choose --as parquet"
        )
    for each in splits:
        _write_split(folder / each.name, each, arrays.classes)


def _write_split(place: Path, table: Table, classes: tuple[str, ...]) -> None:
    place.mkdir()
    folders = [name if _SAFE.fullmatch(name) else f"class{k}" for k, name in enumerate(classes)]
    for name in sorted({folders[k] for k in table.columns[LABEL]}):
        (place / name).mkdir()
    stream = io.StringIO()
    rows = csv.writer(stream, lineterminator="\n")
    extra = [name for name in table.columns if name not in _FIRST]
    rows.writerow([FILE_NAME, *_FIRST, SPLIT, *extra])
    for row, image in enumerate(table.images):
        label = table.columns[LABEL][row]
        path = f"{folders[label]}/{png_name(row)}"
        (place / path).write_bytes(png(image))
        values = {name: _text(values[row]) for name, values in table.columns.items()}
        values[LABEL] = classes[label]
        first = [values[name] for name in _FIRST]
        rows.writerow([path, *first, table.name, *(values[name] for name in extra)])
    (place / METADATA).write_text(stream.getvalue(), encoding="utf-8", newline="")


def _text(value: Any) -> str:
    return str(value.item()).lower()
