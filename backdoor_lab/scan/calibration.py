"""P values of classes: relative to a reference of clean sets, by the maximum over all statistics.

The statistics of a set are an array (filters, classes). Each is studentized by the other classes of
the set. The maximum over filters and classes of the sets of a reference is the null distribution of
every class (single-step maxT; Westfall and Young, "Resampling-Based Multiple Testing", 1993,
section 2.6). If the scanned set is clean and exchangeable with the sets of the reference, the
probability that any class has p <= alpha is at most alpha, however filters and classes depend on
each other.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from backdoor_lab.core.errors import ConfigError

Array = NDArray[np.float64]
FEWEST_CLASSES = 5
"""The fewest classes that can be compared with each other."""
MAD_OF_NORMAL = 1.4826
"""A normal sample's standard deviation divided by its median absolute deviation."""
LEAST = 5.0
"""A class whose studentized statistics are smaller raises no alarm, whatever the reference says:
classes of real data sets differ from each other by more than those of synthetic ones. Chosen on
clean and poisoned parts of the test images of CIFAR-10 and Fashion-MNIST."""
LARGEST = 1e6
"""Upper bound of a studentized statistic, for classes that are all equal but one."""


def studentized(statistics: Array, floor: Sequence[float]) -> Array:
    """Returns each of `statistics` float64 (filters, classes) minus the median of the other
    classes, divided by 1.4826 MAD of the other classes plus the filter's value in `floor`.

    The class itself is left out, so that it does not hide itself; the constant `floor` keeps the
    quotient from being large only because the other classes happen to be alike (as the constant s0
    of Tusher, Tibshirani, Chu, PNAS 98(9), 2001). Same shape; 0 if there are fewer than three
    classes. Raises ValueError for values that are not finite.
    """
    if not np.isfinite(statistics).all():
        raise ValueError("the statistics must be finite")
    classes = statistics.shape[1]
    if classes < 3:
        return np.zeros_like(statistics)
    others = statistics[:, _others(classes)]  # (filters, classes, classes - 1)
    median = np.median(others, axis=2)
    spread = np.median(np.abs(others - median[:, :, None]), axis=2)
    scale = MAD_OF_NORMAL * spread + np.asarray(floor)[:, None]
    difference = statistics - median
    with np.errstate(divide="ignore", invalid="ignore"):
        quotient = np.where(difference == 0, 0.0, difference / scale)
    return np.clip(quotient, -LARGEST, LARGEST)


def _others(classes: int) -> NDArray[np.int64]:
    """Returns the indices (classes, classes - 1) of the other classes of each class."""
    every = np.tile(np.arange(classes), (classes, 1))
    return every[~np.eye(classes, dtype=bool)].reshape(classes, classes - 1)


def max_t(classes: Array, null: Array, least: float = LEAST) -> Array:
    """Returns the p value of each of `classes`, float64 (k,): (1 + #{null >= t}) / (1 + N), where
    `null` (N,) has the maximum of each set of the reference. Statistics below `least` are taken as
    minus infinity, so that p is 1.

    >>> max_t(np.array([8.0, 6.0, 3.0]), np.array([1.0, 7.0, 0.1]))
    array([0.25, 0.5 , 1.  ])
    """
    classes, null = (np.where(each < least, -np.inf, each) for each in (classes, null))
    at_least = (null[None, :] >= classes[:, None]).sum(axis=1)
    return (1 + at_least) / (1 + len(null))


def check_alpha(alpha: float, n: int) -> None:
    """Raises ConfigError if no p value relative to `n` sets can be as small as `alpha`."""
    smallest = 1 / (n + 1)
    if alpha < smallest:
        raise ConfigError(
            f"`scan.alpha` must be at least 1 / (N + 1) = {smallest:.4g} for a reference of N = {n}"
            f" sets, since no p value is smaller; got {alpha:g}"
        )
