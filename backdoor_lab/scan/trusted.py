"""P values of classes from trusted clean images of the same source, by permutation.

The set is divided into two folds. A network is trained on one fold and computes the features of the
other fold and of the trusted images, none of which it has seen. If the images of a class in that
fold are clean and exchangeable with the trusted images of the class, so are their features, and
permuting the two groups gives a valid test for any statistic. Then the folds are swapped; the p
value is twice the smaller one, adjusted over classes by Holm's rule.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backdoor_lab.analysis.paired import holm
from backdoor_lab.core import streams
from backdoor_lab.core.errors import DataError, many
from backdoor_lab.core.rng import numpy_generator
from backdoor_lab.core.types import LabeledImages
from backdoor_lab.numerics.singular import top_directions
from backdoor_lab.scan.images import ScanImages

Array = NDArray[np.float64]
FEWEST_TRUSTED = 10
"""A class with fewer trusted images is not tested."""
DIRECTIONS = 8
BLOCK = 200


@dataclass(frozen=True)
class Fold:
    """The two groups of one class: features (n, d) of the examined images and of the trusted ones,
    each at several layers."""

    examined: Sequence[Tensor]
    trusted: Sequence[Tensor]


def folds(labels: Tensor, classes: int, seed: int) -> Tensor:
    """Divides images into two folds that have the same number of images of every class, or one more
    in fold 0. Returns the fold of each image, int64 (n,), 0 or 1."""
    fold = torch.zeros(len(labels), dtype=torch.int64)
    for label in range(classes):
        rows = (labels == label).nonzero().flatten()
        generator = numpy_generator(seed, streams.SCAN_FOLDS, label)
        order = torch.from_numpy(generator.permutation(len(rows)))
        fold[rows[order[: len(rows) // 2]]] = 1
    return fold


def permutations_for(classes: int, alpha: float, asked: int) -> int:
    """Returns the number of permutations per class: `asked`, or as many as the smallest adjusted p
    value needs to be at most half of `alpha`."""
    return max(asked, math.ceil(4 * classes / alpha) - 1)


def permutation_p(fold: Fold, permutations: int, generator: np.random.Generator) -> float:
    """Returns the p value of one class and one fold: (1 + #{permuted >= observed}) / (1 + B).

    At each layer, the images of both groups together are projected onto their top directions, and
    the squared projections, in units of their mean, are the images' scores. This does not depend on
    the groups. The statistic of a direction is the mean score of the examined images minus that of
    the trusted ones, divided by its standard deviation under permutation; the statistic of the
    class is the maximum over directions and layers.
    """
    n, m = len(fold.examined[0]), len(fold.trusted[0])
    scores = np.concatenate([
        pooled_scores(torch.cat([ours, theirs]))
        for ours, theirs in zip(fold.examined, fold.trusted, strict=True)
    ])  # fmt: skip
    groups = np.zeros((permutations + 1, n + m))
    groups[:, :n] = 1
    for row in groups[1:]:
        generator.shuffle(row)
    statistics = two_sample(scores, groups)
    # Equal statistics may differ by rounding, which must not make the p value smaller.
    observed = statistics[0] - 1e-9 * abs(statistics[0])
    return float((1 + (statistics[1:] >= observed).sum()) / (1 + permutations))


def pooled_scores(values: Tensor) -> Array:
    """Returns the scores (directions, n) of features (n, d): the squared projections of the
    centered rows onto their top directions, each divided by its mean."""
    rows = values.double()
    rows = rows - rows.mean(dim=0)
    _, directions = top_directions(rows, DIRECTIONS)
    squares = (rows @ directions).square().T
    found: Array = (squares / squares.mean(dim=1, keepdim=True).clamp(min=1e-300)).numpy()
    return found


def two_sample(scores: Array, groups: Array) -> Array:
    """Returns the statistic (rows,) of each row of `groups` (rows, n), which is 1 for images of the
    first group and 0 for the second: the maximum over `scores` (directions, n) of the standardized
    difference of the group means."""
    n = scores.shape[1]
    first = groups[0].sum()
    deviation = scores - scores.mean(axis=1, keepdims=True)
    # The variance of the sum of `first` of n values drawn without replacement.
    variance = (deviation**2).sum(axis=1) * first * (n - first) / (n * max(1, n - 1))
    scale = np.where(variance > 0, np.sqrt(variance), np.inf)
    found: Array = (groups @ (deviation.T / scale)).max(axis=1)
    return found


def combined(first: Sequence[float | None], second: Sequence[float | None]) -> list[float | None]:
    """Returns the p value of each class: twice the smaller p value of the two folds, at most 1,
    adjusted over the tested classes by Holm's rule. None for classes that were not tested."""
    both = [
        None if p is None or q is None else min(1.0, 2 * min(p, q))
        for p, q in zip(first, second, strict=True)
    ]
    tested = [label for label, p in enumerate(both) if p is not None]
    adjusted = holm([float(both[label] or 0) for label in tested])
    found: list[float | None] = [None] * len(both)
    for label, p in zip(tested, adjusted, strict=True):
        found[label] = p
    return found


def class_p(fold: Fold, label: int, number: int, permutations: int, seed: int) -> float | None:
    """Returns the p value of class `label` in fold `number`, or None if it has too few trusted
    images."""
    if len(fold.trusted[0]) < FEWEST_TRUSTED or not len(fold.examined[0]):
        return None
    generator = numpy_generator(seed, streams.SCAN_PERMUTATIONS, number, label)
    return permutation_p(fold, permutations, generator)


def same_classes(trusted: ScanImages, found: ScanImages) -> LabeledImages:
    """Returns the trusted images with the labels of the scanned set. Raises DataError for a class
    that the scanned set does not have, for images of another shape, and for images that are also in
    the scanned set."""
    given = trusted.labeled
    unknown = [name for name in given.classes if name not in found.classes]
    if unknown:
        raise DataError(
            f"`scan.trusted` has the class {unknown[0]}, which the scanned set does not have; its"
            f" classes: {', '.join(found.classes[:10])}"
        )
    if given.shape != found.labeled.shape:
        raise DataError(
            f"`scan.trusted` has images of {given.shape}, the scanned set of {found.labeled.shape}"
        )
    known = {image.tobytes() for image in found.labeled.images.numpy()}
    if shared := sum(image.tobytes() in known for image in given.images.numpy()):
        raise DataError(
            f"`scan.trusted` shares {many(shared, 'image')} with the scanned set, on which networks"
            " are trained: leave them out of `scan.trusted`"
        )
    numbers = torch.tensor([found.classes.index(name) for name in given.classes])
    return LabeledImages(given.images, numbers[given.labels], found.classes, given.digest)
