"""Otsu's criterion: how well each cut of sorted values separates them into two groups."""

from __future__ import annotations

from backdoor_lab.core.lazy import Tensor, torch


def variance_between(ordered: Tensor) -> Tensor:
    """n² times the variance between the first k and the other values, for k = 1..n-1.

    `ordered` floating (n,), sorted in either direction; the result (n - 1,) has its type. The
    largest entry marks the cut that leaves the least variance inside the two groups (Otsu, "A
    Threshold Selection Method from Gray-Level Histograms", IEEE Transactions on Systems, Man,
    and Cybernetics 9(1), 1979, equations 12 to 18).
    """
    n = len(ordered)
    k = torch.arange(1, n, dtype=ordered.dtype, device=ordered.device)
    first = ordered.cumsum(0)[:-1]
    return k * (n - k) * (first / k - (ordered.sum() - first) / (n - k)).square()
