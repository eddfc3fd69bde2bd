"""Kernel two-sample statistic, and the anomaly index of one value among several."""

from __future__ import annotations

from backdoor_lab.core.lazy import Tensor, torch

BLOCK = 1000
MAD_OF_NORMAL = 1.4826
"""A normal sample's standard deviation divided by its median absolute deviation."""


def kernel_distance(first: Tensor, second: Tensor) -> float:
    """Returns m n / (m + n) times the squared maximum mean discrepancy of samples (m, d) and (n,
    d).

    The kernel is the sum of two Gaussians, exp(-s / b) + exp(-2 s / b), of the squared distance s;
    b is the lower median of s over all ordered pairs of rows of both samples, including each row
    paired with itself. 0 if a sample is empty or all rows are equal. Needs 4 (m + n)^2 bytes.
    """
    m, n = len(first), len(second)
    both = torch.cat([first, second]).double()
    bandwidth = _median_of_squares(both) if m and n else 0.0
    if bandwidth <= 0:
        return 0.0
    sums = torch.zeros(len(both), 2, dtype=torch.float64)
    for start in range(0, len(both), BLOCK):
        squares = _squares(both[start : start + BLOCK], both)
        kernel = (-squares / bandwidth).exp() + (-2 * squares / bandwidth).exp()
        sums[start : start + BLOCK] = torch.stack(
            [kernel[:, :m].sum(dim=1), kernel[:, m:].sum(dim=1)], dim=1
        )
    within = sums[:m, 0].sum() / m**2 + sums[m:, 1].sum() / n**2
    across = sums[:m, 1].sum() / (m * n)
    return float(m * n / (m + n) * (within - 2 * across))


def anomaly_index(values: Tensor, added: float = 0.0) -> Tensor:
    """Returns |x - median| / (1.4826 (MAD + `added`)) for each x of `values` float64 (k,); same
    shape. If the denominator is 0, the result is the largest float64 number instead of infinity."""
    distance = (values - values.quantile(0.5)).abs()
    mad = distance.quantile(0.5) + added
    limits = torch.finfo(torch.float64)
    return (distance / (MAD_OF_NORMAL * mad.clamp(min=limits.tiny))).clamp(max=limits.max)


def _squares(rows: Tensor, others: Tensor) -> Tensor:
    # If computed from a product of matrices, small distances would be lost to rounding.
    mode = "donot_use_mm_for_euclid_dist"
    return torch.cdist(rows, others, compute_mode=mode).square()


def _median_of_squares(rows: Tensor) -> float:
    """Returns the lower median of the squared distances over all ordered pairs of `rows`.
    Computes only one distance per unordered pair."""
    count = len(rows)
    distances = torch.pdist(rows).numpy()
    # Among the sorted distances of ordered pairs, the n zeros of rows paired with themselves come
    # first, followed by every other distance twice.
    rank = (count * count - 1) // 2 - count
    if rank < 0:
        return 0.0
    distances.partition(rank // 2)
    return float(distances[rank // 2]) ** 2
