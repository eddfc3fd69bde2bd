"""The order of a cell's stages, on which progress, estimates and figures depend."""

from __future__ import annotations

from backdoor_lab.results.stages import (
    AFTER_TRAININGS,
    BETWEEN_TRAININGS,
    STAGES,
    is_at_or_before,
)


def test_the_stages_before_and_after_retraining_are_listed_in_order() -> None:
    assert BETWEEN_TRAININGS == (
        "train_accuracy1", "measure1", "transformed1", "autoencoder", "clean", "extract", "filter",
    )  # fmt: skip
    assert AFTER_TRAININGS == ("train_accuracy2", "measure2", "transformed2", "record")
    assert len(set(STAGES)) == len(STAGES)


def test_a_stage_that_runs_twice_is_ordered_by_its_first_run() -> None:
    assert is_at_or_before("surrogate", "poison")
    assert is_at_or_before("train", "train")
    assert not is_at_or_before("measure", "train")
    assert is_at_or_before("measure", "extract")
    assert not is_at_or_before("retrain", "extract")
