"""What the store has of a cell: its training set, the verdict on it, the number of the target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backdoor_lab.results.stored import Judged, Shelf, Training

Array = NDArray[Any]


@dataclass(frozen=True)
class Material:
    """What a cell's pictures are made from: the training set, its verdict, the target's number."""

    training: Training
    judged: Judged
    target: int


def material(shelf: Shelf, record: dict[str, Any]) -> Material | None:
    """The training set and the verdict of a record; None where the store lacks one of them."""
    training = shelf.training(record)
    judged = shelf.judged(record, len(training.index)) if training is not None else None
    if training is None or judged is None:
        return None
    choices = record.get("choices")
    target = choices.get("target") if isinstance(choices, dict) else None
    if target not in training.classes:
        return None
    return Material(training, judged, training.classes.index(str(target)))


def in_target(found: Material) -> Array:
    """Positions int (b,) of the examples labelled as the target, without covers, which are
    neither clean nor poison."""
    mine = found.training.labels == found.target
    return np.flatnonzero(mine & ~found.training.is_cover)
