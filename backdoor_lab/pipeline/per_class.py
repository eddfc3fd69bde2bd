"""The accuracy per class and the confusion matrix of a network, as `measure_stage` stores them and
as records contain them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from backdoor_lab.core.lazy import Tensor
from backdoor_lab.numerics.confusion import confusion_matrix

MOST_CLASSES, LARGEST_MATRIX = 200, 20
"""To keep records small, they have the accuracy per class of at most this many classes, and the
confusion matrix of at most this many."""


def measured_per_class(predicted: Tensor, labels: Tensor, classes: int) -> dict[str, Any] | None:
    """For each class, the number of images (`n_test`) and the `accuracy` on them (None for a class
    without images); and the `confusion` matrix, None with more than `LARGEST_MATRIX` classes.
    Returns None with more than `MOST_CLASSES` classes.

    `predicted` and `labels` are int64 (n,).
    """
    if classes > MOST_CLASSES:
        return None
    confusion = confusion_matrix(predicted, labels, classes)
    right, sizes = confusion.diagonal().tolist(), confusion.sum(dim=1).tolist()
    return {
        "n_test": sizes,
        "accuracy": [n / size if size else None for n, size in zip(right, sizes, strict=True)],
        "confusion": confusion.tolist() if classes <= LARGEST_MATRIX else None,
    }


def recorded_per_class(
    classes: Sequence[str], before: dict[str, Any], after: dict[str, Any]
) -> dict[str, Any] | None:
    """Returns the entry of a record, with the measures before (`nat1`, `confusion1`) and after the
    defense. `before` and `after` are the outputs of `measure_stage`. None with too many classes."""
    first, second = before["per_class"], after["per_class"] or {}
    if first is None:
        return None
    return {
        "classes": [*classes],
        "n_test": first["n_test"],
        "nat1": first["accuracy"],
        "nat2": second.get("accuracy"),
        "confusion1": first["confusion"],
        "confusion2": second.get("confusion"),
    }
