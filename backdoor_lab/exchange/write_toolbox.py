"""Writes a poisoned data set in the layout of backdoor-toolbox, with the test images in two folders
of their own."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from backdoor_lab.data.base import Arrays
from backdoor_lab.exchange.layouts import (
    COVER_INDICES,
    ELSEWHERE,
    IMGS,
    IS_COVER,
    IS_POISON,
    LABEL,
    LABELS,
    PNGS,
    POISON_INDICES,
    SOURCE_INDEX,
    TEST_FOLDER,
    TEST_INDEX,
    TRIGGERED_FOLDER,
)
from backdoor_lab.exchange.splits import Table, png, tables


def write_toolbox(folder: Path, arrays: Arrays) -> None:
    """Writes the splits to the existing folder `folder`."""
    train, *others = tables(arrays)
    columns = train.columns
    found = {
        IMGS: torch.from_numpy(np.array(train.images)).float().div_(255),
        LABELS: _tensor(columns[LABEL]),
        POISON_INDICES: np.flatnonzero(columns[IS_POISON]).tolist(),
        COVER_INDICES: np.flatnonzero(columns[IS_COVER]).tolist(),
        SOURCE_INDEX: _tensor(columns[SOURCE_INDEX]),
    }
    _save(folder, found)
    for each in others:
        place = folder / (TRIGGERED_FOLDER if ELSEWHERE in each.columns else TEST_FOLDER)
        _write_images(place, each)


def _write_images(place: Path, table: Table) -> None:
    (place / PNGS).mkdir(parents=True)
    for row, image in enumerate(table.images):
        (place / PNGS / f"{row}.png").write_bytes(png(image))
    found = {LABELS: _tensor(table.columns[LABEL])}
    if ELSEWHERE in table.columns:
        found[TEST_INDEX] = _tensor(table.columns[SOURCE_INDEX])
        found[ELSEWHERE] = _tensor(table.columns[ELSEWHERE])
    _save(place, found)


def _tensor(values: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(np.array(values))


def _save(place: Path, found: dict[str, Any]) -> None:
    for name, value in found.items():
        # torch reports a full disk as a RuntimeError, so it does not write the file itself.
        stream = io.BytesIO()
        torch.save(value, stream)
        (place / name).write_bytes(stream.getbuffer())
