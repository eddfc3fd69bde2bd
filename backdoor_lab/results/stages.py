"""The stages of a cell in order, by the names used in its record."""

from __future__ import annotations

from typing import Any

STAGES = (
    "prepare", "surrogate", "poison", "attacked", "train", "train_accuracy1", "measure1",
    "transformed1", "autoencoder", "clean", "extract", "filter", "repair", "retrain",
    "train_accuracy2", "measure2", "transformed2",
)  # fmt: skip
"""All stages. No cell has all of them: a cell with a repair has neither ``filter`` nor
``retrain``, and a cell whose attacked network is given has ``attacked`` instead of ``train``."""
_REPAIR, _RETRAIN = STAGES.index("repair"), STAGES.index("retrain")
BETWEEN_TRAININGS = STAGES[STAGES.index("train") + 1 : _REPAIR]
AFTER_TRAININGS = (*STAGES[_RETRAIN + 1 :], "record")
"""The stages after retraining, and ``record``: writing the record, which is not a stage in the
store and whose time is not measured."""


def attacked_stage(record: dict[str, Any]) -> str:
    """The stage of a cell that yielded the attacked network: ``train``, or ``attacked`` if it was
    given."""
    return "attacked" if "attacked" in record["run"]["stages"] else "train"


def is_at_or_before(stage: str, other: str) -> bool:
    """Whether `stage` is `other` or an earlier stage. Both are names in the store. These do not
    distinguish the runs of a stage; a stage that runs twice counts as its first run: ``measure`` as
    ``measure1``."""
    return _first(stage) <= _first(other)


def _first(stage: str) -> int:
    return STAGES.index(stage if stage in STAGES else f"{stage}1")
