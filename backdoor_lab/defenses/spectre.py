"""SPECTRE: spectral signatures after robust whitening."""

from __future__ import annotations

from backdoor_lab.core import validation
from backdoor_lab.core.lazy import Tensor, torch
from backdoor_lab.core.progress import track
from backdoor_lab.defenses.base import ClassScores, DefenderKnowledge, suspects_by_size
from backdoor_lab.defenses.options import DEFAULTS, FilterOptions
from backdoor_lab.defenses.principal import Principal
from backdoor_lab.numerics.robust_covariance import covariance, filtered, root_of

ROWS_PER_COMPONENT = 10
REMOVED_PER_POISON = 1.5
"""Number of images removed per poisoned image, in the paper and its code."""


class SPECTRE(Principal):
    """Removes the examples with the highest quantum-entropy scores after robust whitening.

    Hayase, Kong, Somani, Oh, "SPECTRE: Defending Against Backdoor Attacks Using Robust Statistics",
    ICML 2021, as in the authors' code. A class of n examples is centered and projected onto its top
    k principal directions. All examples are whitened by the covariance of those that remain after
    the filter of Diakonikolas et al. 2017 (`filtered`, with parameter `tau`), which removes at most
    `filter_limit` times ε examples, where ε is the assumed number of poisoned examples. For k = 1,
    the examples are not whitened. The score is h^T Q h / tr Q with Q = exp(`alpha` (S - I) /
    (||S|| - 1)), where S is the covariance of the whitened features.

    k is `rank` or, by default, the value among 1, 4, 9, ..., `max_rank` with the largest tr(S Q) /
    tr Q. For this quotient, the examples are projected onto `max_rank` directions and whitened by
    the covariance of the examples that would be kept with the scores for k directions. There must
    be at least ten examples per direction, so `max_rank` is lowered for small classes.

    If the budget is a multiple of the number of poisoned examples (``1.5eps``), ε is that number;
    otherwise, ε is the number of examples that the budget removes, divided by 1.5. ε is capped at a
    third of the class; with ``auto``, ε is a third of the class. `layer` is the layer to use in
    place of `protocol.layer`. Unlike in the authors' code, all directions have equal weight if no
    eigenvalue of S is above 1.
    """

    def __init__(
        self,
        options: FilterOptions = DEFAULTS,
        *,
        layer: str | None = None,
        rank: int | None = None,
        max_rank: int = 100,
        alpha: float = 4.0,
        tau: float = 0.1,
        filter_limit: float = 2.0,
    ) -> None:
        super().__init__(options)
        self.feature_layer = None if layer is None else validation.text("defense.layer", layer)
        self.rank = None if rank is None else validation.whole("defense.rank", rank, low=1)
        self.max_rank = validation.whole("defense.max_rank", max_rank, low=1)
        self.alpha = validation.number("defense.alpha", alpha, low=0)
        self.tau = validation.number("defense.tau", tau, low=1e-9, below=1)
        self.filter_limit = validation.number("defense.filter_limit", filter_limit, low=0)

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
        poisoned = min(known.epsilon or removed / REMOVED_PER_POISON, n / 3)
        tried = track(self._only(ranks, top), "rank")
        found = [self._judged(points, k, removed, poisoned) for k in tried]
        quality, scores, k = max(found, key=lambda each: each[0])
        return ClassScores(scores, quality, notes={"rank": k})

    def suspicious_classes(self, scores_of: dict[int, ClassScores]) -> list[int]:
        return suspects_by_size(scores_of)

    def _only(self, ranks: list[int], top: int) -> list[int]:
        return ranks if self.rank is None else [min(self.rank, top)]

    def _judged(
        self, points: Tensor, k: int, removed: int, poisoned: float
    ) -> tuple[float, Tensor, int]:
        """Returns three results for `k` directions: the quotient tr(S Q) / tr Q that decides
        between values of k (see `weighted_variance`), the scores (n,), and `k`."""
        scores = que(self._whitened(points[:, :k], poisoned), self.alpha)
        rest = points[scores.topk(len(points) - removed, largest=False).indices]
        white = points @ root_of(covariance(rest, correction=1), points)
        return weighted_variance(white, self.alpha), scores, k

    def _whitened(self, points: Tensor, poisoned: float) -> Tensor:
        """Returns the centered `points` (n, k), whitened by the covariance of those that the filter
        keeps."""
        if points.shape[1] == 1:
            return points
        share, limit = poisoned / len(points), round(self.filter_limit * poisoned)
        kept = filtered(points, share, self.tau, min(limit, len(points) // 2))
        return points @ root_of(covariance(points[kept], correction=0), points)


def que(white: Tensor, alpha: float) -> Tensor:
    """Returns the quantum-entropy scores (n,) of whitened features `white` float64 (n, k).

    Dong, Hopkins, Li, "Quantum Entropy Scoring for Fast Robust Mean Estimation and Improved
    Outlier Detection", NeurIPS 2019, in the form of SPECTRE's Algorithm 1.
    """
    _, weights, directions = _weighted(white, alpha)
    return (white @ directions).square() @ weights


def weighted_variance(white: Tensor, alpha: float) -> float:
    """Returns tr(S Q) / tr Q for the covariance S of `white` float64 (n, k); Q is as in
    `SPECTRE`."""
    eigenvalues, weights, _ = _weighted(white, alpha)
    return float(eigenvalues @ weights)


def _weighted(white: Tensor, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the eigenvalues of the covariance of `white`, the weight of each eigenvector, and the
    eigenvectors. The weights sum to 1."""
    eigenvalues, directions = torch.linalg.eigh(covariance(white, correction=1))
    beyond = eigenvalues[-1] - 1
    if beyond <= 1e-9:
        weights = torch.ones_like(eigenvalues)
    else:
        # Relative to the largest eigenvalue, so that no alpha overflows.
        weights = torch.exp(alpha * (eigenvalues - eigenvalues[-1]) / beyond)
    return eigenvalues, weights / weights.sum(), directions
