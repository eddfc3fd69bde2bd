"""SPECTRE: spectral signatures after robust whitening."""

from __future__ import annotations

from backdoor_lab.core import validation
from backdoor_lab.core.lazy import Tensor, torch
from backdoor_lab.core.progress import track
from backdoor_lab.defenses.base import ClassScores, DefenderKnowledge, suspects_by_size
from backdoor_lab.defenses.options import DEFAULTS, FilterOptions
from backdoor_lab.defenses.principal import Principal

ROWS_PER_COMPONENT = 10
STEPS = 50


class SPECTRE(Principal):
    """Removes the examples with the highest quantum-entropy scores after robust whitening.

    Hayase, Kong, Somani, Oh, "SPECTRE: Defending Against Backdoor Attacks Using Robust
    Statistics", ICML 2021: project a class on its top k principal directions, estimate mean and
    covariance robustly, whiten, and score tau_i = h_i^T Q h_i / tr Q with
    Q = exp(alpha (S - I) / (||S|| - 1)), where S is the covariance of the whitened features.

    k is `rank` or, by default, the one of 1, 4, 9, ... `max_rank` for which removing the highest
    scores and whitening by the remaining examples gives the largest mean score of the class.
    There are at least ten examples per dimension.

    Differences from the paper: the robust estimate is the minimum covariance determinant over
    all but as many examples as the budget removes (at most half of the class; half for
    ``auto``), from three deterministic starts (see `concentrated`), instead of the filter of
    Diakonikolas et al. 2017, and also gives the mean. If no direction of S is above average,
    ||S|| <= 1, all directions have equal weight.
    """

    def __init__(
        self,
        options: FilterOptions = DEFAULTS,
        *,
        rank: int | None = None,
        max_rank: int = 100,
        alpha: float = 4.0,
    ) -> None:
        super().__init__(options)
        self.rank = None if rank is None else validation.whole("defense.rank", rank, low=1)
        self.max_rank = validation.whole("defense.max_rank", max_rank, low=1)
        self.alpha = validation.number("defense.alpha", alpha, low=0)

    def score_class(self, values: Tensor, label: int, known: DefenderKnowledge) -> ClassScores:
        n = len(values)
        most = max(self.max_rank, self.rank or 1)
        points = self.components(values, min(most, n // ROWS_PER_COMPONENT))
        if not points.shape[1]:
            nothing = torch.zeros(n, dtype=torch.float64)
            return ClassScores(nothing, notes={"skipped": "fewer than ten examples, or all alike"})
        asked = self.budget.size(n, known.epsilon)
        removed = n // 2 if asked is None else min(asked, n // 2)
        top = points.shape[1]
        ranks = [k * k for k in range(1, top) if k * k < top] + [top]
        found = [self._judged(points, k, removed) for k in track(self._only(ranks, top), "rank")]
        quality, scores, k = max(found, key=lambda each: each[0])
        return ClassScores(scores, quality, notes={"rank": k})

    def suspicious_classes(self, scores_of: dict[int, ClassScores]) -> list[int]:
        return suspects_by_size(scores_of)

    def _only(self, ranks: list[int], top: int) -> list[int]:
        return ranks if self.rank is None else [min(self.rank, top)]

    def _judged(self, points: Tensor, k: int, removed: int) -> tuple[float, Tensor, int]:
        """Quality of k directions, their scores (n,), and k."""
        kept = len(points) - removed
        scores = que(whitened(points[:, :k], *concentrated(points[:, :k], kept)), self.alpha)
        rest = points[scores.topk(kept, largest=False).indices]
        again = que(whitened(points, rest.mean(dim=0), _covariance(rest)), self.alpha)
        return float(again.mean()), scores, k


def que(white: Tensor, alpha: float) -> Tensor:
    """Quantum-entropy scores (n,) of whitened features `white` float64 (n, k).

    Dong, Hopkins, Li, "Quantum Entropy Scoring for Fast Robust Mean Estimation and Improved
    Outlier Detection", NeurIPS 2019, in the form of SPECTRE's Algorithm 1.
    """
    eigenvalues, directions = torch.linalg.eigh(_covariance(white))
    beyond = eigenvalues[-1] - 1
    if beyond <= 1e-9:
        weights = torch.ones_like(eigenvalues)
    else:
        # Relative to the largest eigenvalue, so that no alpha overflows.
        weights = torch.exp(alpha * (eigenvalues - eigenvalues[-1]) / beyond)
    return (white @ directions).square() @ weights / weights.sum()


def whitened(points: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
    """Centered `points` (n, k), rotated and scaled so that `covariance` becomes I."""
    eigenvalues, directions = torch.linalg.eigh(covariance)
    # Directions without variance in the good examples stay finite and get the largest weight.
    spread = points.square().mean(dim=0).max() * 1e-12
    return (points - mean) @ (directions / eigenvalues.clamp(min=spread).sqrt())


def concentrated(points: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    """Mean (k,) and covariance (k, k) of the `kept` rows with the smallest covariance.

    The minimum covariance determinant by concentration steps (Rousseeuw and Van Driessen 1999,
    theorem 1) from three deterministic starts, as in DetMCD (Hubert, Rousseeuw, Verdonck 2012):
    distance from the median in MAD, the same along the axes of the spatial sign covariance, and
    plain Mahalanobis distance. The covariance is scaled to be consistent for a normal class
    (Croux and Haesbroeck 1999).
    """
    found = [_concentrate(points, start, kept) for start in _starts(points)]
    _, mean, covariance = min(found, key=lambda each: each[0])
    return mean, covariance * _consistency(kept / len(points), points.shape[1])


def _starts(points: Tensor) -> list[Tensor]:
    about = points - points.median(dim=0).values
    signs = about / torch.linalg.vector_norm(about, dim=1, keepdim=True).clamp(min=1e-300)
    axes = torch.linalg.eigh(signs.T @ signs).eigenvectors
    plain = whitened(points, points.mean(dim=0), _covariance(points))
    return [_by_mad(points), _by_mad(points @ axes), plain.square().sum(dim=1)]


def _by_mad(points: Tensor) -> Tensor:
    about = points - points.median(dim=0).values
    mad = about.abs().median(dim=0).values
    return (about / mad.clamp(min=float(about.abs().max()) * 1e-6 + 1e-300)).square().sum(dim=1)


def _concentrate(points: Tensor, distances: Tensor, kept: int) -> tuple[float, Tensor, Tensor]:
    """Log determinant, mean and covariance after the last concentration step."""
    before = float("inf")
    for _ in range(STEPS):
        nearest = points[distances.topk(kept, largest=False, sorted=False).indices]
        mean, covariance = nearest.mean(dim=0), _covariance(nearest)
        size = float(torch.linalg.eigvalsh(covariance).clamp(min=1e-300).log().sum())
        if size > before - 1e-9:
            break
        before = size
        distances = whitened(points, mean, covariance).square().sum(dim=1)
    return size, mean, covariance


def _consistency(share: float, k: int) -> float:
    """Correction for the covariance of the inner `share` of a normal sample in k dimensions."""
    from scipy.special import gammainc, gammaincinv

    return 1.0 if share >= 1 else share / float(gammainc(k / 2 + 1, gammaincinv(k / 2, share)))


def _covariance(points: Tensor) -> Tensor:
    centered = points - points.mean(dim=0)
    return centered.T @ centered / len(points)
