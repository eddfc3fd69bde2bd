"""The stored outputs of a cell that several analyses read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backdoor_lab.results.artifact_reader import ArtifactReader
from backdoor_lab.results.stored_results import StoredFilterResult, Training

Array = NDArray[Any]


@dataclass(frozen=True)
class CellArtifacts:
    """The outputs of one cell: its training set, the defense's result, and the index of the target
    class."""

    training: Training
    filter_result: StoredFilterResult
    target: int


def cell_artifacts(reader: ArtifactReader, record: dict[str, Any]) -> CellArtifacts | None:
    """Read the stored outputs of a record's cell; None if any of them is not in the store, or if it
    is not known which images are poisoned."""
    training = reader.training(record)
    filter_result = (
        reader.filter_result(record, len(training.index)) if training is not None else None
    )
    if training is None or filter_result is None or not training.known:
        return None
    choices = record.get("choices")
    target = choices.get("target") if isinstance(choices, dict) else None
    if target not in training.classes:
        return None
    return CellArtifacts(training, filter_result, training.classes.index(str(target)))


def in_target(found: CellArtifacts) -> Array:
    """Returns the positions, int (b,), of the examples labeled as the target class. Excludes cover
    images, which count as neither clean nor poisoned."""
    mine = found.training.labels == found.target
    return np.flatnonzero(mine & ~found.training.is_cover)
