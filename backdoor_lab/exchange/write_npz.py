"""Writes a poisoned data set as one .npz file of plain arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from backdoor_lab.data.base import Arrays
from backdoor_lab.exchange.layouts import (
    CLASSES,
    ELSEWHERE,
    IS_COVER,
    IS_POISON,
    LABEL,
    NPZ,
    SOURCE_INDEX,
    TEST_ARRAYS,
    TRAIN_ARRAYS,
    TRIGGERED_ARRAYS,
)
from backdoor_lab.exchange.splits import tables

_ARRAYS = {
    "train": (TRAIN_ARRAYS, (LABEL, IS_POISON, IS_COVER, SOURCE_INDEX)),
    "test": (TEST_ARRAYS, (LABEL,)),
    "triggered": (TRIGGERED_ARRAYS, (LABEL, SOURCE_INDEX, ELSEWHERE)),
}


def write_npz(folder: Path, arrays: Arrays) -> None:
    """Writes the splits to `layouts.NPZ` in the existing folder `folder`."""
    found = {CLASSES: np.array(arrays.classes)}
    for each in tables(arrays):
        names, columns = _ARRAYS[each.name]
        values = [each.images, *(each.columns[column] for column in columns)]
        found |= dict(zip(names, values, strict=True))
    with (folder / NPZ).open("xb") as stream:
        np.savez(stream, **found)  # type: ignore[arg-type]
