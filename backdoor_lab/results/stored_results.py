"""The poisoned training set and the result of a filter, as read from a store."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Training:
    """A poisoned training set of n examples, with the ground truth.

    - `base` uint8 (N, C, H, W): the clean images.
    - `rows` uint8 (P + Q, C, H, W): P poisoned images, then Q cover images. `poisoned` is P.
    - `index` int (n,): the training images, as indices into the concatenation of `base` and `rows`.
    - `labels` int (n,): the training labels.
    - `original` int (P + Q,): the clean image from which each row was made.
    - `clean_labels` int (N,): the labels before the attack.
    - `classes`: the class names.
    - `known`: whether the ground truth is known; if not, no image counts as poison or cover.
    """

    base: Array
    rows: Array
    index: Array
    labels: Array
    original: Array
    poisoned: int
    clean_labels: Array
    classes: tuple[str, ...]
    known: bool = True

    @cached_property
    def is_poison(self) -> Array:
        first = len(self.base)
        return (self.index >= first) & (self.index < first + self.poisoned)

    @cached_property
    def is_cover(self) -> Array:
        return np.asarray(self.index >= len(self.base) + self.poisoned)

    @cached_property
    def has_originals(self) -> bool:
        """Whether `base` contains the clean images of poisoned images: a data set that was poisoned
        before it was read may lack them, and `original` then refers to the rows themselves."""
        first = self.original[: self.poisoned]
        return not np.array_equal(self.base[first], self.rows[: self.poisoned])

    def images(self, where: Array) -> Array:
        """Returns the images, uint8 (b, C, H, W), with the indices in `where`, int (b,)."""
        found = np.empty((len(where), *self.base.shape[1:]), np.uint8)
        index, first = self.index[where], len(self.base)
        laid_over = index >= first
        found[~laid_over] = self.base[index[~laid_over]]
        found[laid_over] = self.rows[index[laid_over] - first]
        return found

    def before(self, where: Array) -> Array:
        """Returns the labels, int (b,), that the examples with the indices in `where`, int (b,),
        had before the attack."""
        index, first = self.index[where], len(self.base)
        clean = np.where(index < first, index, 0)
        if len(self.original):
            rows = np.where(index < first, 0, index - first)
            clean = np.where(index < first, clean, self.original[rows])
        return np.asarray(self.clean_labels[clean])


@dataclass(frozen=True)
class StoredFilterResult:
    """The result of a filter: `scores` float64 (n,), NaN for images that were not scored; `keep`
    bool (n,), false for removed images."""

    scores: Array
    keep: Array


def check_training(made: Training) -> None:
    """Raises ValueError if the arrays of `made` are inconsistent."""
    n, rows, images = len(made.index), len(made.rows), len(made.base)
    sound = (
        made.base.ndim == 4 and made.base.dtype == np.uint8 == made.rows.dtype
        and made.rows.shape[1:] == made.base.shape[1:]
        and made.labels.shape == (n,) and made.clean_labels.shape == (images,)
        and len(made.original) == rows
    )  # fmt: skip
    if not sound:
        raise ValueError(
            "the stored arrays have inconsistent shapes: they belong to different training sets"
        )
    for values, below in (
        (made.index, images + rows),
        (made.original, images),
        (made.labels, len(made.classes)),
        (made.clean_labels, len(made.classes)),
    ):
        if len(values) and not 0 <= values.min() <= values.max() < below:
            raise ValueError(f"a stored index or label is outside 0..{below - 1}")
