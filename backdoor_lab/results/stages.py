"""The stages of a cell in the order in which it goes through them, by their names in its record."""

from __future__ import annotations

STAGES = (
    "prepare", "surrogate", "poison", "train", "train_accuracy1", "measure1", "transformed1",
    "autoencoder", "clean", "extract", "filter", "repair", "retrain", "train_accuracy2", "measure2",
    "transformed2",
)  # fmt: skip
"""No cell goes through all of them: one with a repair has neither ``filter`` nor ``retrain``."""
_REPAIR, _RETRAIN = STAGES.index("repair"), STAGES.index("retrain")
BETWEEN_TRAININGS = STAGES[STAGES.index("train") + 1 : _REPAIR]
AFTER_TRAININGS = (*STAGES[_RETRAIN + 1 :], "record")
"""With the writing of the record, which is no stage of the store and has no seconds."""


def is_at_or_before(stage: str, other: str) -> bool:
    """Whether a cell reaches `stage` no later than `other`. Both are names in the store, where one
    stage (``measure``) serves both networks: then the first time counts."""
    return _first(stage) <= _first(other)


def _first(stage: str) -> int:
    return STAGES.index(stage if stage in STAGES else f"{stage}1")
