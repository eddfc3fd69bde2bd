"""Accuracy per class: classes without images, and the limits that keep records small."""

from __future__ import annotations

import json

import pytest
import torch

from backdoor_lab.pipeline.per_class import (
    LARGEST_MATRIX,
    MOST_CLASSES,
    measured_per_class,
    recorded_per_class,
)


def test_a_class_without_test_images_has_no_accuracy() -> None:
    found = measured_per_class(torch.tensor([0, 1, 1, 3]), torch.tensor([0, 0, 1, 1]), 4)
    assert found == {
        "n_test": [2, 2, 0, 0], "accuracy": [0.5, 0.5, None, None],
        "confusion": [[1, 1, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("classes", "matrix", "accuracy"),
    [(LARGEST_MATRIX, True, True), (LARGEST_MATRIX + 1, False, True), (MOST_CLASSES, False, True),
     (MOST_CLASSES + 1, False, False)],
)  # fmt: skip
def test_records_of_many_classes_stay_small(classes: int, matrix: bool, accuracy: bool) -> None:
    labels = torch.arange(10 * classes) % classes
    predicted = (labels + (torch.arange(10 * classes) % 3 == 0)) % classes
    measured = {"per_class": measured_per_class(predicted, labels, classes)}
    names = [f"class {number}" for number in range(classes)]
    found = recorded_per_class(names, measured, measured)
    assert (found is not None) == accuracy
    if found is not None:
        assert (found["confusion1"] is not None) == (found["confusion2"] is not None) == matrix
        assert len(found["nat1"]) == len(found["nat2"]) == classes
    assert len(json.dumps(found)) < 20_000
