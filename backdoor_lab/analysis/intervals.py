"""Intervals of a mean (Student) and of a share (Wilson), and the p value of a t test.

scipy.special is imported where it is used: of `compare`, which takes 0.15 s, it would cost every
run as much again, and `reports` 0.1 s.
"""

from __future__ import annotations

import math
from functools import cache
from statistics import NormalDist

LEVEL = 0.95


def half_width(std: float, n: int) -> float | None:
    """Half the 95 % interval of the mean of `n` values: ``t(n-1) * std / sqrt(n)``.

    `std` is the sample's (divided by n-1). None for fewer than two values. It is the t interval
    of the mean: for bounded quantities it may reach below 0 % or above 100 %, and is not clipped.
    """
    if n < 2:
        return None
    return t_quantile(n - 1) * std / math.sqrt(n)


def wilson(share: float, n: int) -> tuple[float, float]:
    """The 95 % score interval of a share of `n` independent trials (Wilson 1927): within 0 to 1,
    and right near either end too, as the textbook interval is not."""
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2) / (1 + z * z / n)
    # Exact at the ends, where rounding would leave a little of `half`.
    low = max(0.0, middle - half) if share > 0 else 0.0
    return low, min(1.0, middle + half) if share < 1 else 1.0


@cache
def t_quantile(freedom: int, level: float = LEVEL) -> float:
    """The t with ``P(|T| <= t) = level``."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + level) / 2))


def beyond(t: float, freedom: int) -> float:
    """``P(|T| >= t)`` for `t` of 0 or more."""
    from scipy.special import stdtr

    return float(2 * stdtr(freedom, -t))
