"""Robust estimation of a covariance: the filter of Diakonikolas et al. 2017.

Diakonikolas, Kamath, Kane, Li, Moitra, Stewart, "Being Robust (in High Dimensions) Can Be
Practical", ICML 2017, with the constants from the code of SPECTRE (Hayase et al. 2021).
"""

from __future__ import annotations

import math
from typing import Any

from backdoor_lab.core.lazy import Tensor, torch

SCALE = 10.0
SHIFT = 3.0
ACCURACY = 1e-10
"""Relative accuracy of the largest eigenvalue."""
DENSE = 8
"""Maximum number of dimensions for which all eigenvalues of the operator are computed."""


def filtered(points: Tensor, share: float, tau: float, limit: int) -> Tensor:
    """Returns which rows of `points` float64 (n, d) the filter keeps: bool (n,).

    `share` is the fraction of corrupted rows and `tau` the allowed probability of failure. At most
    `limit` rows are removed, in rounds, until the fourth moments are plausible for normal data with
    this fraction of corrupted rows. `points` must have mean 0; the remaining rows are not centered
    again.
    """
    kept = torch.arange(len(points))
    form = torch.ones(points.shape[1], points.shape[1], dtype=torch.float64)
    while limit > 0 and share > 0:
        inside, form = _round(points[kept], share, tau, limit, form)
        removed = 0 if inside is None else int((~inside).sum())
        if inside is None or not removed:
            break
        kept, limit = kept[inside], limit - removed
    mask = torch.zeros(len(points), dtype=torch.bool)
    mask[kept] = True
    return mask


def covariance(points: Tensor, correction: int = 0) -> Tensor:
    """Returns the covariance (d, d) of the rows of `points` (n, d), with the divisor n -
    `correction`."""
    centered = points - points.mean(dim=0)
    return centered.T @ centered / max(1, len(points) - correction)


def root_of(covariance: Tensor, points: Tensor) -> Tensor:
    """Returns W = `covariance`^(-1/2) (d, d), which whitens `points` (n, d) by ``points @ W``.

    W is finite even if some directions have no variance: their variance is replaced by 1e-12 times
    the largest mean square in `points`.
    """
    eigenvalues, directions = torch.linalg.eigh(covariance)
    least = points.square().mean(dim=0).max() * 1e-12
    return directions / eigenvalues.clamp(min=least).sqrt() @ directions.T


def _round(
    points: Tensor, share: float, tau: float, limit: int, form: Tensor
) -> tuple[Tensor | None, Tensor]:
    """Run one round. Returns which rows it keeps, bool (n,), or None to end the filter. Also
    returns the quadratic form (d, d) from which the next round starts its search."""
    n, d = points.shape
    white = points @ root_of(points.T @ points / n, points)
    squares = white.square().sum(dim=1)
    far = squares >= SCALE * d * math.log(n / tau)
    if bool(far.any()):
        return ~far | _lowest(squares, n - limit), form
    variance, form = _largest_variance(white, form)
    if variance <= 1 + SCALE * share * math.log(1 / share) ** 2:
        return None, form
    values = (((white @ form) * white).sum(dim=1) - form.trace()) / math.sqrt(2)
    distances = (values - values.quantile(0.5)).abs()
    bound = _tail_bound(distances, share)
    if bound is None:
        return None, form
    return (distances <= bound) | _lowest(distances, n - limit), form


def _tail_bound(distances: Tensor, share: float) -> float | None:
    """Returns the smallest valid bound T, or None if no bound is valid.

    The candidates are T = x - 3 for each x in `distances`. A bound T > 0 is valid if the fraction
    of `distances` <= T + 3 is at least p(T). With ε = `share`, p(T) is 1 for T <= 10 log(1 / ε),
    and 3 ε / (T log T)^2 for larger T.
    """
    ordered = distances.sort().values
    bounds = ordered - SHIFT
    allowed = 3 * share / (bounds * bounds.clamp(min=1e-9).log()).square()
    allowed[bounds <= SCALE * math.log(1 / share)] = 1.0
    rank = torch.arange(1, len(ordered) + 1) / len(ordered)
    met = ((bounds > 0) & (rank >= allowed)).nonzero().flatten()
    return float(bounds[met[0]]) if len(met) else None


def _lowest(values: Tensor, count: int) -> Tensor:
    """Returns a mask of the `count` lowest values, and of all values equal to one of them."""
    if count < 1:
        return torch.zeros(len(values), dtype=torch.bool)
    return values <= values.kthvalue(count).values


def _largest_variance(white: Tensor, start: Tensor) -> tuple[float, Tensor]:
    """Finds the symmetric V (d, d) of Frobenius norm 1 that maximizes the variance of y^T V y over
    the rows y of `white` (n, d). The second-moment matrix of the rows must be the identity. Returns
    this variance and V."""
    n, d = white.shape
    rows, unit = white.numpy(), torch.eye(d, dtype=torch.float64).numpy()

    def operator(flat: Any) -> Any:
        form = flat.reshape(d, d)
        along = ((rows @ form) * rows).sum(axis=1)
        return ((rows.T * along) @ rows / n - form.trace() * unit).ravel()

    variance, flat = _top_eigenpair(operator, start.flatten().numpy())
    form = torch.from_numpy(flat.reshape(d, d).copy())
    return variance, (form + form.T) / 2


def _top_eigenpair(operator: Any, start: Any) -> tuple[float, Any]:
    import numpy as np
    from scipy.sparse.linalg import LinearOperator, eigsh  # type: ignore[import-untyped]

    size = len(start)
    if size <= DENSE**2:
        whole = np.stack([operator(row) for row in np.eye(size)])
        eigenvalues, vectors = np.linalg.eigh((whole + whole.T) / 2)
        return float(eigenvalues[-1]), vectors[:, -1]
    shape = LinearOperator((size, size), matvec=operator, dtype=np.float64)
    eigenvalues, vectors = eigsh(shape, k=1, which="LA", v0=start, tol=ACCURACY)
    return float(eigenvalues[0]), vectors[:, 0]
