"""Confidence intervals of a mean (Student), of a proportion (Wilson) and of the difference of two
proportions (Newcombe), and p values of t tests.

scipy.special is imported in the functions that use it: importing it would double the start-up time
of `compare` (0.15 s) and add 0.1 s to `reports`.
"""

from __future__ import annotations

import math
from functools import cache
from statistics import NormalDist

LEVEL = 0.95


def half_width(std: float, n: int) -> float | None:
    """Returns the half-width of the 95 % confidence interval of a mean of `n` values: ``t(n-1) *
    std / sqrt(n)``.

    `std` is the sample standard deviation (divisor n-1). Returns None for fewer than two values.
    The t interval is not clipped: for bounded quantities it may reach below 0 % or above 100 %.
    """
    if n < 2:
        return None
    return t_quantile(n - 1) * std / math.sqrt(n)


def wilson(share: float, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Returns the score interval of a proportion `share` of `n` independent trials (Wilson 1927);
    `level` is the confidence level. Unlike the normal approximation, it stays within 0..1 and is
    accurate near both ends.

    >>> [round(bound, 3) for bound in wilson(0.0, 10)]
    [0.0, 0.278]
    """
    z = _normal_quantile(level)
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2) / (1 + z * z / n)
    # The bounds at 0 and 1 are exact; rounding would leave a remainder of `half`.
    low = max(0.0, middle - half) if share > 0 else 0.0
    return low, min(1.0, middle + half) if share < 1 else 1.0


def exact(successes: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Returns the exact interval of a proportion of `n` independent trials (Clopper and Pearson
    1934), of which `successes` succeeded.

    >>> [round(bound, 3) for bound in exact(11, 11)]
    [0.715, 1.0]
    """
    from scipy.special import betaincinv  # type: ignore[import-untyped]

    tail = (1 - level) / 2
    low = 0.0 if successes == 0 else float(betaincinv(successes, n - successes + 1, tail))
    high = 1.0 if successes == n else float(betaincinv(successes + 1, n - successes, 1 - tail))
    return low, high


def newcombe(share: float, n: int, other: float, m: int) -> tuple[float, float]:
    """Returns the 95 % interval of the difference ``share - other`` between two proportions.

    `share` is a proportion of `n` independent trials, `other` one of `m`. The interval is computed
    from the Wilson intervals of both (Newcombe, "Interval estimation for the difference between
    independent proportions", Statistics in Medicine 1998, method 10).

    >>> [round(bound, 4) for bound in newcombe(56 / 70, 70, 48 / 80, 80)]
    [0.0524, 0.3339]
    """
    (low, high), (other_low, other_high) = wilson(share, n), wilson(other, m)
    below = math.hypot(share - low, other_high - other)
    above = math.hypot(high - share, other - other_low)
    return share - other - below, share - other + above


@cache
def _normal_quantile(level: float) -> float:
    """Returns the z with ``P(|Z| <= z) = level``."""
    return NormalDist().inv_cdf((1 + level) / 2)


@cache
def t_quantile(freedom: int, level: float = LEVEL) -> float:
    """Returns the t with ``P(|T| <= t) = level`` for `freedom` degrees of freedom."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + level) / 2))


def beyond(t: float, freedom: int) -> float:
    """Returns ``P(|T| >= t)`` for `t` >= 0 and `freedom` degrees of freedom."""
    from scipy.special import stdtr

    return float(2 * stdtr(freedom, -t))
