"""The activation clustering filter."""

from __future__ import annotations

from backdoor_lab.core import streams, validation
from backdoor_lab.core.lazy import Tensor, torch
from backdoor_lab.core.rng import derive
from backdoor_lab.defenses.base import ClassScores, DefenderKnowledge, row_order
from backdoor_lab.defenses.options import DEFAULTS, FilterOptions
from backdoor_lab.defenses.principal import Principal

FEWEST = 3


class ActivationClustering(Principal):
    """Splits each class into two clusters and flags the smaller one.

    Chen, Carvalho, Baracaldo, Ludwig, Edwards, Lee, Molloy, Srivastava, "Detecting Backdoor Attacks
    on Deep Neural Networks by Activation Clustering", SafeAI@AAAI 2019: the features of a class are
    reduced to `n_components` components, by independent component analysis as in the paper
    (``reduce=ica``) or by PCA (``reduce=pca``), and clustered by 2-means. The score is the distance
    to the larger cluster's centroid minus the distance to the smaller one's, which is positive
    exactly for members of the smaller cluster.

    ``removal_budget=auto`` removes the smaller cluster of suspicious classes. With ``rule=size``, a
    class is suspicious if the smaller cluster's share of the class is below `size_threshold`; with
    ``rule=silhouette``, the mean silhouette of the two clusters, which is high for well-separated
    clusters, must also be above `silhouette_threshold`. Shares are rounded to two and silhouettes
    to four decimals, as in the authors' toolbox (ART). The paper's exclusionary reclassification is
    not implemented.
    """

    def __init__(
        self,
        options: FilterOptions = DEFAULTS,
        *,
        n_components: int = 10,
        reduce: str = "ica",
        rule: str = "size",
        size_threshold: float = 0.35,
        silhouette_threshold: float = 0.1,
    ) -> None:
        super().__init__(options)
        self.n_components = validation.whole("defense.n_components", n_components, low=1)
        self.reduce = validation.choice("defense.reduce", reduce, ("ica", "pca"))
        self.rule = validation.choice("defense.rule", rule, ("size", "silhouette"))
        self.size_threshold = validation.number(
            "defense.size_threshold", size_threshold, low=0, below=0.5 + 1e-9
        )
        self.silhouette_threshold = validation.number(
            "defense.silhouette_threshold", silhouette_threshold, low=-1, below=1
        )

    def score_class(self, values: Tensor, label: int, known: DefenderKnowledge) -> ClassScores:
        order = row_order(values)
        seed = derive(known.seed, streams.CLUSTERS, label) % 2**32
        reduced = self._reduced(values[order].cpu(), seed)
        if len(reduced) < FEWEST or not reduced.shape[1]:
            nothing = torch.zeros(len(reduced), dtype=torch.float64)
            return ClassScores(nothing, 0.0, 0, {"skipped": "no two clusters"})
        member, apart = _two_means(reduced, seed)
        scores = torch.empty_like(apart)
        scores[order] = apart
        share = float(member.double().mean())
        notes: dict[str, object] = {"smaller": share}
        caught = round(share, 2) < self.size_threshold
        if self.rule == "silhouette":
            notes["silhouette"] = fit = _silhouette(reduced, member)
            caught = caught and round(fit, 4) > self.silhouette_threshold
        return ClassScores(scores, 1 - 2 * share, int(member.sum()) if caught else 0, notes)

    def suspicious_classes(self, scores_of: dict[int, ClassScores]) -> list[int]:
        return [label for label, scored in scores_of.items() if scored.auto]

    def _reduced(self, values: Tensor, seed: int) -> Tensor:
        reduced = self.components(values, min(self.n_components, len(values) - 1))
        if self.reduce == "pca" or reduced.shape[1] < 2:
            return reduced
        return _independent(reduced, seed)


def _independent(components: Tensor, seed: int) -> Tensor:
    """Returns independent components with variance 1, computed from principal components (n, k) by
    FastICA (Hyvärinen and Oja 2000) with ART's tolerance. If it does not converge in 1,000 steps,
    the result of the last step is used.
    """
    import warnings

    from sklearn.decomposition import FastICA  # type: ignore[import-untyped]
    from sklearn.exceptions import ConvergenceWarning  # type: ignore[import-untyped]

    white = components / components.std(dim=0, correction=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        ica = FastICA(whiten=False, random_state=seed, max_iter=1000, tol=0.005)
        return torch.from_numpy(ica.fit_transform(white.numpy()))


def _two_means(points: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Divides points into two clusters. For each point, returns whether it is in the smaller
    cluster, bool (n,), and its distance to the larger cluster's centroid minus its distance to the
    smaller one's, (n,)."""
    from sklearn.cluster import KMeans  # type: ignore[import-untyped]

    made = KMeans(2, n_init=10, random_state=seed).fit(points.numpy())
    distances = torch.from_numpy(made.transform(points.numpy()))
    first = distances[:, 0] < distances[:, 1]
    smaller = 0 if 2 * int(first.sum()) < len(first) else 1
    apart = distances[:, 1 - smaller] - distances[:, smaller]
    return apart > 0, apart


def _silhouette(points: Tensor, member: Tensor) -> float:
    from sklearn.metrics import silhouette_score  # type: ignore[import-untyped]

    if not bool(member.any()) or bool(member.all()):
        return 0.0
    return float(silhouette_score(points.numpy(), member.numpy()))
