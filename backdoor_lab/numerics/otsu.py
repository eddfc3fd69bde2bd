"""Otsu's criterion for splitting sorted values into two groups."""

from __future__ import annotations

from backdoor_lab.core.lazy import Tensor, torch


def variance_between(ordered: Tensor) -> Tensor:
    """Returns n² times the variance between the first k values and the other n-k, for k = 1..n-1.

    `ordered` is floating-point (n,), sorted in either direction; the result (n - 1,) has the same
    dtype. Its maximum marks the split with the least within-group variance (Otsu, "A Threshold
    Selection Method from Gray-Level Histograms", IEEE Transactions on Systems, Man, and Cybernetics
    9(1), 1979, equations 12 to 18).

    >>> int(variance_between(torch.tensor([1.0, 1.1, 5.0])).argmax()) + 1
    2
    """
    n = len(ordered)
    k = torch.arange(1, n, dtype=ordered.dtype, device=ordered.device)
    first = ordered.cumsum(0)[:-1]
    return k * (n - k) * (first / k - (ordered.sum() - first) / (n - k)).square()
