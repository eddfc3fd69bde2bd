"""Scores against a truth: ROC steps and what is left when the highest scores go first.

Everything is NumPy, so that pages and tables read it without torch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def roc_steps(scores: Array, positive: Array) -> tuple[Array, Array]:
    """Positive and negative examples float64 (t + 1,) at or above each of the t different scores.

    `scores` (n,) without NaN, `positive` bool (n,). From the highest score down, after a first 0:
    true positives against false positives are the ROC curve.
    """
    values, which = np.unique(scores, return_inverse=True)
    counts = (np.bincount(which[kind], minlength=len(values)) for kind in (positive, ~positive))
    true, false = (np.append(0.0, np.cumsum(each[::-1], dtype=np.float64)) for each in counts)
    return true, false


def auroc(scores: Array, positive: Array) -> float:
    """The chance that a positive example scores above a negative one; ties count half.

    Arguments as for `roc_steps`. All sums are exact. NaN where a score is not finite, or one
    kind is missing.
    """
    if not np.isfinite(scores).all() or not 0 < positive.sum() < len(scores):
        return float("nan")
    true, false = roc_steps(scores, positive)
    below = (np.diff(false) * (true[1:] + true[:-1])).sum() / 2
    return float(below / (true[-1] * false[-1]))


def positives_left(scores: Array, positive: Array, removed: Array) -> Array:
    """How many positive examples are left when the `removed` (m,) highest scores are gone:
    float64 (m,).

    `scores` (n,) with NaN for examples that are never removed. Of tied scores a random one goes
    first: the mean over such orders.
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
