"""The t interval of a mean, without importing scipy (1.4 s) into a command that takes 0.8 s."""

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
    """The t with ``P(|T| <= t) = level`` for a whole number of degrees of freedom, by bisection."""
    low, high = 0.0, 1.0
    while inside(high, freedom) < level:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if inside(middle, freedom) < level else (low, middle)
    return (low + high) / 2


def inside(t: float, freedom: int) -> float:
    """P(|T| <= t): Abramowitz and Stegun 26.7.3 (odd degrees of freedom) and 26.7.4 (even)."""
    angle = math.atan2(t, math.sqrt(freedom))
    cosine, odd = math.cos(angle), freedom % 2
    term, total = (cosine if odd else 1.0), 0.0
    for k in range(1 + odd, freedom, 2):
        total += term
        term *= cosine * cosine * k / (k + 1)
    if odd:
        return 2 / math.pi * (angle + math.sin(angle) * total)
    return math.sin(angle) * total
