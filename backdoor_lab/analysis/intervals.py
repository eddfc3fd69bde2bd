"""Student's t: the interval of a mean, and the p value of a test.

scipy.special is imported where it is used: of `compare`, which takes 0.15 s, it would cost every
run as much again, and `reports` 0.1 s.
"""

from __future__ import annotations

import math
from functools import cache

LEVEL = 0.95


def half_width(std: float, n: int) -> float | None:
    """Half the 95 % interval of the mean of `n` values: ``t(n-1) * std / sqrt(n)``.

    `std` is the sample's (divided by n-1). None for fewer than two values. It is the t interval
    of the mean: for bounded quantities it may reach below 0 % or above 100 %, and is not clipped.
    """
    if n < 2:
        return None
    return t_quantile(n - 1) * std / math.sqrt(n)


@cache
def t_quantile(freedom: int, level: float = LEVEL) -> float:
    """The t with ``P(|T| <= t) = level``."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + level) / 2))


def beyond(t: float, freedom: int) -> float:
    """``P(|T| >= t)`` for `t` of 0 or more."""
    from scipy.special import stdtr

    return float(2 * stdtr(freedom, -t))
