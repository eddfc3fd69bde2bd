"""SCAn: tests whether a class consists of two groups."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from backdoor_lab.core import validation
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.lazy import Tensor, torch
from backdoor_lab.core.progress import track
from backdoor_lab.core.types import Features
from backdoor_lab.defenses.base import ClassScores, DefenderKnowledge, finite, modified_z
from backdoor_lab.defenses.options import DEFAULTS, FilterOptions
from backdoor_lab.defenses.principal import Principal
from backdoor_lab.numerics.otsu import variance_between
from backdoor_lab.numerics.singular import top_directions

STEPS = 100


class SCAn(Principal):
    """Splits each class into two groups under the variation of clean classes, and flags one.

    Tang, Wang, Tang, Zhang, "Demon in the Variant: Statistical Analysis of DNNs for Robust
    Backdoor Contamination Detection", USENIX Security 2021. Features are modeled as a class
    identity plus a variation common to all classes: r = mu + e, mu ~ N(0, S_mu), e ~ N(0, S_e).
    Both covariances are estimated from held-out clean images (`variation`). J is the
    log-likelihood ratio per example of two groups against one; J* is the distance of J above the
    median class in MAD, scaled to standard deviations. A class with J* above `threshold` (e^2 in
    the paper) is suspicious, and ``removal_budget=auto`` removes its suspicious group.

    The group nearer to the clean examples of the class is taken as clean; without any, the
    larger one. Score: log-likelihood ratio of the other group against it, positive exactly for
    members of the other group. Differences from the paper: S_e is shrunk (Ledoit and Wolf 2004),
    so that it is invertible with fewer held-out images than dimensions; its estimation is
    complete (see `variation`); only large J* are flagged; the groups are initialized along the
    class's top direction instead of at random.
    """

    def __init__(
        self,
        options: FilterOptions = DEFAULTS,
        *,
        threshold: float = math.e**2,
    ) -> None:
        super().__init__(options)
        self.threshold = validation.number("defense.threshold", threshold, low=0)

    def requires(self) -> list[str]:
        return [*super().requires(), "clean"]

    def score_class(self, values: Tensor, label: int, known: DefenderKnowledge) -> ClassScores:
        return self._look(values, label, Variation.of(known), values.double().mean(dim=0))

    def score_classes(
        self,
        features: Features,
        members: dict[int, Tensor],
        wanted: Iterable[int],
        known: DefenderKnowledge,
    ) -> dict[int, ClassScores]:
        model = Variation.of(known)
        middle = features.values.double().mean(dim=0)
        scores_of = {
            y: self._look(features.values[where], y, model, middle)
            for y, where in track(members.items(), "class")
        }
        ratios = torch.tensor(
            [scored.suspicion for scored in scores_of.values()], dtype=torch.float64
        )
        # Two classes are equally far from their median, so neither is an outlier.
        index = modified_z(ratios).tolist()
        return {
            y: self._ruled(scored, star)
            for (y, scored), star in zip(scores_of.items(), index, strict=True)
            if y in wanted
        }

    def suspicious_classes(self, scores_of: dict[int, ClassScores]) -> list[int]:
        return [y for y, scored in scores_of.items() if (scored.suspicion or 0.0) > self.threshold]

    def _ruled(self, scored: ClassScores, star: float) -> ClassScores:
        group = int((scored.scores > 0).sum())
        notes = scored.notes | {"J": scored.suspicion, "J*": star}
        return replace(
            scored, suspicion=star, auto=group if star > self.threshold else 0, notes=notes
        )

    @staticmethod
    def _look(values: Tensor, label: int, model: Variation, middle: Tensor) -> ClassScores:
        white = (values.double() - middle) @ model.whiten
        second = two_groups(white)
        nothing = torch.zeros(len(white), dtype=torch.float64)
        if second is None:
            return ClassScores(nothing, 0.0, 0, {"skipped": "fewer than two different examples"})
        ours = model.own(label, middle)
        means = white[~second].mean(dim=0), white[second].mean(dim=0)
        if ours is None:
            good = int(2 * int(second.sum()) > len(second))
        else:
            good = int((means[1] - ours).square().sum() < (means[0] - ours).square().sum())
        from_good = (white - means[good]).square().sum(dim=1)
        from_other = (white - means[1 - good]).square().sum(dim=1)
        one = (white - model.identity(white)).square().sum(dim=1)
        ratio = float((one - torch.minimum(from_good, from_other)).mean())
        return ClassScores(from_good - from_other, ratio)


@dataclass(frozen=True)
class Variation:
    """The model estimated from held-out images. `whiten` (d, d) maps the within-class covariance
    to I; `between` (d, d) is the covariance of whitened identities; `means` per clean class."""

    whiten: Tensor
    between: Tensor
    means: dict[int, Tensor]

    @classmethod
    def of(cls, known: DefenderKnowledge) -> Variation:
        """Estimated from `known.clean`. Raises ConfigError if that is None or has one class."""
        clean = known.clean
        if clean is None or len(clean.labels.unique()) < 2:
            raise ConfigError(
                "`defense=scan` needs features of held-out clean images of at least two classes"
                " (DefenderKnowledge.clean): choose a protocol that holds some out"
            )
        finite(clean.values, "rows of clean features")
        values = clean.values.double()
        if not bool((values - values[0]).any()):
            raise ConfigError("`defense=scan`: the features of all clean images are equal")
        identity, within = variation(values, clean.labels)
        eigenvalues, axes = torch.linalg.eigh(within)
        whiten = axes / eigenvalues.clamp(min=float(eigenvalues[-1]) * 1e-12 + 1e-300).sqrt()
        means = {int(y): values[clean.labels == y].mean(dim=0) for y in clean.labels.unique()}
        return cls(whiten, whiten.T @ identity @ whiten, means)

    def own(self, label: int, middle: Tensor) -> Tensor | None:
        """The whitened clean mean (d,) of a class; None if it has no clean examples."""
        return (self.means[label] - middle) @ self.whiten if label in self.means else None

    def identity(self, white: Tensor) -> Tensor:
        """Most likely identity (d,) of a class `white` (n, d): its mean, shrunk towards 0 by the
        prior N(0, `between`)."""
        both = self.between + torch.eye(len(self.between), dtype=white.dtype) / len(white)
        return self.between @ torch.linalg.solve(both, white.mean(dim=0))


def variation(values: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Covariances (d, d) of identity and variation, from clean `values` float64 (n, d).

    Expectation maximization (paper, section 4; Chen et al., "Bayesian Face Revisited", ECCV
    2012). Given the mean of its m examples, a class identity is normal with mean
    S_mu (S_mu + S_e / m)^-1 mean. Both covariances are re-estimated from the identities, the
    residuals and the posterior uncertainty of the identities. The sources omit the last term,
    which makes S_mu vanish along axes on which classes overlap.
    """
    from sklearn.covariance import ledoit_wolf_shrinkage  # type: ignore[import-untyped]

    values = values - values.mean(dim=0)
    _, which, sizes = labels.unique(return_inverse=True, return_counts=True)
    m = sizes[:, None].double()
    means = torch.zeros(len(m), values.shape[1]).double().index_add(0, which, values) / m
    left = values - means[which]
    # Above 0, so that dead features do not cause a division by zero.
    share = max(float(ledoit_wolf_shrinkage(left.numpy(), assume_centered=True)), 1e-6)
    between, within = means.T @ means / len(m), _shrink(left.T @ left / len(left), share)
    for _ in track(range(STEPS), "EM step"):
        before = torch.cat([between, within])
        axes, ratio = _common_axes(between, within)
        drawn = ratio / (ratio + 1 / m)
        identities = torch.linalg.solve(axes, means.T).T * drawn @ axes.T
        left = values - identities[which]
        unsure = axes * drawn.sum(dim=0) @ axes.T
        within = _shrink((left.T @ left + unsure) / len(left), share)
        between = (identities.T @ identities + axes * (drawn / m).sum(dim=0) @ axes.T) / len(m)
        if float((torch.cat([between, within]) - before).norm()) <= 1e-3 * float(before.norm()):
            break
    return between, within


def _common_axes(between: Tensor, within: Tensor) -> tuple[Tensor, Tensor]:
    """T (d, d) and r (d,) such that within = T T' and between = T diag(r) T'."""
    root = torch.linalg.cholesky(within)
    half = torch.linalg.solve_triangular(root, between, upper=False)
    ratio, turn = torch.linalg.eigh(torch.linalg.solve_triangular(root, half.T, upper=False))
    return root @ turn, ratio.clamp(min=0)


def two_groups(white: Tensor) -> Tensor | None:
    """Membership of the rows of `white` float64 (n, d) in the second of two groups: bool (n,).

    Maximizes the likelihood of two groups with covariance I by alternating between the group
    means and the half-space between them, starting from the best threshold along the top
    direction; finds a local optimum. None if all rows are equal.
    """
    centered = white - white.mean(dim=0)
    _, directions = top_directions(centered, 1)
    along = centered @ directions[:, 0]
    if len(along) < 2 or float(along.max() - along.min()) <= 1e-9 * float(white.abs().max()):
        return None
    second = along > _best_cut(along)
    for _ in track(range(STEPS), "step"):
        first_mean, second_mean = centered[~second].mean(dim=0), centered[second].mean(dim=0)
        middle = (first_mean + second_mean) / 2
        now = (centered - middle) @ (second_mean - first_mean) > 0
        if torch.equal(now, second) or bool(now.all()) or not bool(now.any()):
            break
        second = now
    return second


def _best_cut(x: Tensor) -> float:
    """The threshold that splits `x` (n,), n > 1, with the least within-group variance (Otsu)."""
    ordered = x.sort().values
    between = variance_between(ordered)
    between[ordered[1:] <= ordered[:-1]] = -1
    at = int(between.argmax())
    return float(ordered[at] + ordered[at + 1]) / 2


def _shrink(covariance: Tensor, share: float) -> Tensor:
    level = covariance.diagonal().mean()
    even = torch.eye(len(covariance), dtype=covariance.dtype)
    return (1 - share) * covariance + share * level * even
