"""Evaluates scores against the ground truth: ROC, and the poison left after removal by score.

Uses NumPy only, so that pages and tables need not import torch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def roc_steps(scores: Array, positive: Array) -> tuple[Array, Array]:
    """Counts the positive and the negative examples at or above each of the t distinct scores.

    `scores` (n,) without NaN, `positive` bool (n,). Returns two float64 arrays (t + 1,), one for
    the positive and one for the negative examples. They start with 0 and go from the highest score
    down; the ROC curve plots the first array against the second.

    >>> roc_steps(np.array([0.9, 0.2, 0.4]), np.array([True, False, True]))
    (array([0., 1., 2., 2.]), array([0., 0., 0., 1.]))
    """
    values, which = np.unique(scores, return_inverse=True)
    counts = (np.bincount(which[kind], minlength=len(values)) for kind in (positive, ~positive))
    true, false = (np.append(0.0, np.cumsum(each[::-1], dtype=np.float64)) for each in counts)
    return true, false


def auroc(scores: Array, positive: Array) -> float:
    """Returns the probability that a positive example scores above a negative one; ties count half.

    Arguments as for `roc_steps`. All sums are exact. NaN if a score is not finite or if there
    are only positive or only negative examples.
    """
    if not np.isfinite(scores).all() or not 0 < positive.sum() < len(scores):
        return float("nan")
    true, false = roc_steps(scores, positive)
    below = (np.diff(false) * (true[1:] + true[:-1])).sum() / 2
    return float(below / (true[-1] * false[-1]))


def positives_left(scores: Array, positive: Array, removed: Array) -> Array:
    """Returns how many positive examples are left after removing the k highest scores, for each k
    in `removed` (m,): float64 (m,).

    `scores` (n,) is NaN for examples that are never removed. If scores are tied, the result is the
    mean over all orders in which they can be removed.
    """
    seen = ~np.isnan(scores)
    true, false = roc_steps(scores[seen], positive[seen])
    if len(true) == 1:
        return np.full(len(removed), float(positive.sum()))
    ends = true + false
    after = np.searchsorted(ends, removed).clip(1, len(ends) - 1)
    part = (removed - ends[after - 1]) / (ends[after] - ends[after - 1])
    gone = true[after - 1] + part * (true[after] - true[after - 1])
    return np.asarray(positive.sum() - gone)
