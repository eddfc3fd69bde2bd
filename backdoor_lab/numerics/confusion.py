"""Counts predictions by class."""

from __future__ import annotations

from backdoor_lab.core.lazy import Tensor, torch


def confusion_matrix(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Returns the number of images by their true class (row) and their predicted class (column),
    int64 (classes, classes). `predicted` and `labels` are int64 (n,)."""
    pairs = torch.bincount(labels * classes + predicted, minlength=classes**2)
    return pairs.reshape(classes, classes)
