"""The splits of a poisoned data set as tables of images, in the form in which they are written."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from backdoor_lab.data.base import Arrays, Split
from backdoor_lab.exchange.layouts import (
    ELSEWHERE,
    SPLITS,
    TRAIN_COLUMNS,
)


@dataclass(frozen=True)
class Table:
    """A split with the name `name`: `images` uint8 (n, C, H, W), and `columns`, arrays (n,): those
    of `layouts.TRAIN_COLUMNS` or of `layouts.TRIGGERED_COLUMNS`."""

    name: str
    images: NDArray[np.uint8]
    columns: dict[str, NDArray[Any]]


def tables(arrays: Arrays) -> Iterator[Table]:
    """Yields the splits `train`, `test` and `triggered` of a data set whose poison is known;
    without `test` and `triggered` if they have no images."""
    attack, test = arrays.attack, arrays.test
    assert attack is not None
    yield _table(SPLITS[0], arrays.train, attack.is_poison, attack.is_cover, attack.source_index)
    if n := len(test.labels):
        nothing = np.zeros(n, bool)
        yield _table(SPLITS[1], test, nothing, nothing, np.full(n, -1))
    if (triggered := triggered_split(arrays)) is not None:
        n = len(triggered.labels)
        found = _table(SPLITS[2], triggered, np.ones(n, bool), np.zeros(n, bool), attack.test_index)
        found.columns[ELSEWHERE] = np.asarray(attack.elsewhere)
        yield found


def triggered_split(arrays: Arrays) -> Split | None:
    """Returns the triggered test images with the labels that the attacker wants, those of
    `elsewhere` included; None if there are none."""
    attack = arrays.attack
    if attack is None or attack.triggered is None or attack.wanted is None:
        return None
    return Split(attack.triggered, attack.wanted) if len(attack.wanted) else None


def _table(name: str, split: Split, *values: NDArray[Any] | None) -> Table:
    columns = dict(zip(TRAIN_COLUMNS, map(np.asarray, (split.labels, *values)), strict=True))
    return Table(name, split.images, columns)


def png(image: NDArray[np.uint8]) -> bytes:
    """Returns the PNG file of an image, uint8 (C, H, W) with C 1 or 3."""
    pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(stream, "PNG")
    return stream.getvalue()


def png_name(row: int) -> str:
    """Returns the name of the PNG file of a row; names sort like rows below 100,000."""
    return f"{row:05d}.png"
