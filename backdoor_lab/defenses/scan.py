"""SCAn: tests whether a class consists of two groups."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from backdoor_lab.core import streams, validation
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.lazy import Tensor, torch
from backdoor_lab.core.progress import track
from backdoor_lab.core.rng import derive
from backdoor_lab.core.types import Features
from backdoor_lab.defenses.base import (
    ClassScores,
    DefenderKnowledge,
    SampleFilter,
    row_order,
)
from backdoor_lab.defenses.options import DEFAULTS, FilterOptions
from backdoor_lab.numerics.robust_covariance import covariance
from backdoor_lab.numerics.two_samples import anomaly_index
from backdoor_lab.returned import finite

STEPS = 100


class SCAn(SampleFilter):
    """Splits each class into two groups by a model of clean classes, and flags one of the groups.

    Tang, Wang, Tang, Zhang, "Demon in the Variant: Statistical Analysis of DNNs for Robust Backdoor
    Contamination Detection", USENIX Security 2021. Features are modeled as a class identity plus a
    variation common to all classes: r = mu + e, mu ~ N(0, S_mu), e ~ N(0, S_e). Both covariances
    are estimated from held-out clean images (`variation`). J is a class's log-likelihood ratio, per
    example, of two groups against one group; J* is the absolute difference between J and its median
    over classes, divided by 1.4826 MAD. A class with J* above `threshold` (e^2 in the paper) is
    suspicious, and ``removal_budget=auto`` removes its suspicious group.

    The group nearer to the clean examples of the class is taken as clean; if the class has none,
    the larger group is. The score is the log-likelihood ratio of the other group against the clean
    group, positive exactly for members of the other group. The authors' code does not choose
    between the groups and has no threshold. To compute J, the function `calc_test` in the authors'
    code estimates the identity of the class without the factor S_mu S_e^-1. This implementation
    includes the factor, as the paper does.

    Only directions in which clean images vary are used. If there are fewer clean images than
    features, poison in other directions is missed. `protocol.clean_holdout` sets the number of
    clean images.
    """

    def __init__(
        self,
        options: FilterOptions = DEFAULTS,
        *,
        threshold: float = math.e**2,
        tolerance: float = 0.01,
    ) -> None:
        super().__init__(options)
        self.threshold = validation.number("defense.threshold", threshold, low=0)
        self.tolerance = validation.number("defense.tolerance", tolerance, low=0)

    def requires(self) -> list[str]:
        return [*super().requires(), "clean"]

    def score_class(self, values: Tensor, label: int, known: DefenderKnowledge) -> ClassScores:
        model = Variation.of(known, self.tolerance)
        return self._look(values, label, model, values.double().mean(dim=0), known.seed)

    def score_classes(
        self,
        features: Features,
        members: dict[int, Tensor],
        wanted: Iterable[int],
        known: DefenderKnowledge,
    ) -> dict[int, ClassScores]:
        model = Variation.of(known, self.tolerance)
        middle = features.values.double().mean(dim=0)
        scores_of = {
            y: self._look(features.values[where], y, model, middle, known.seed)
            for y, where in track(members.items(), "class")
        }
        ratios = [scored.suspicion for scored in scores_of.values()]
        # Two classes are equally far from their median, so neither is an outlier.
        index = anomaly_index(torch.tensor(ratios, dtype=torch.float64)).tolist()
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
    def _look(
        values: Tensor, label: int, model: Variation, middle: Tensor, seed: int
    ) -> ClassScores:
        white = (values.double() - middle) @ model.whiten
        start = drawn_half(values, derive(seed, streams.GROUPS, label))
        second = two_groups(white, start)
        if second is None:
            nothing = torch.zeros(len(white), dtype=torch.float64)
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
    """The model estimated from held-out images. `whiten` (d, r) maps the within-class covariance
    to I, in the r directions in which clean images vary; `between` (r, r) is the covariance of
    the class identities after whitening; `means` holds the mean of each clean class before
    whitening, by label."""

    whiten: Tensor
    between: Tensor
    means: dict[int, Tensor]

    @classmethod
    def of(cls, known: DefenderKnowledge, tolerance: float) -> Variation:
        """Returns the model estimated from `known.clean`. Raises ConfigError if that is None or has
        only one class."""
        clean = known.clean
        if clean is None or len(clean.labels.unique()) < 2:
            raise ConfigError(
                "`defense=scan` needs features of held-out clean images of at least two classes:"
                " raise protocol.clean_holdout"
            )
        finite(clean.values, "rows of clean features")
        values = clean.values.double()
        if not bool((values - values[0]).any()):
            raise ConfigError(
                "`defense=scan` needs clean images that differ: the features of all clean images"
                " are equal"
            )
        identity, within = variation(values, clean.labels, tolerance)
        eigenvalues, axes = torch.linalg.eigh(within)
        # The same directions as in a pseudo-inverse.
        real = eigenvalues > eigenvalues[-1] * len(eigenvalues) * torch.finfo(torch.float64).eps
        whiten = axes[:, real] / eigenvalues[real].sqrt()
        means = {int(y): values[clean.labels == y].mean(dim=0) for y in clean.labels.unique()}
        return cls(whiten, whiten.T @ identity @ whiten, means)

    def own(self, label: int, middle: Tensor) -> Tensor | None:
        """Returns the whitened mean (r,) of the clean examples of a class; None if the class has no
        clean examples."""
        return (self.means[label] - middle) @ self.whiten if label in self.means else None

    def identity(self, white: Tensor) -> Tensor:
        """Returns the most likely identity (r,) of a class, which is the component that all
        features of the class share: the mean of the whitened features `white` (n, r), shrunk toward
        0 by the prior N(0, `between`)."""
        both = self.between + torch.eye(len(self.between), dtype=white.dtype) / len(white)
        return self.between @ torch.linalg.solve(both, white.mean(dim=0))


def variation(values: Tensor, labels: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """Returns two covariances (d, d), estimated from clean `values` float64 (n, d): S_mu of the
    identity vectors, and S_e of the variation within classes.

    Uses expectation maximization as in the authors' code (paper, section 4). The identity vector of
    a class of m examples with mean x is S_mu (S_mu + S_e / m)^-1 x. S_mu is the covariance of the
    identity vectors, counted once per example. S_e is the covariance of the residuals (each example
    minus the identity vector of its class). The iteration ends when the Frobenius norms of the
    changes of the two covariances sum to at most `tolerance`, or after 100 steps.
    """
    values = values - values.mean(dim=0)
    _, which, sizes = labels.unique(return_inverse=True, return_counts=True)
    sums = torch.zeros(len(sizes), values.shape[1]).double().index_add(0, which, values)
    identities = sums / sizes[:, None]
    between = covariance(identities[which], correction=1)
    within = covariance(values - identities[which], correction=1)
    for _ in track(range(STEPS), "EM step"):
        before = between, within
        inverse = torch.linalg.pinv(within, hermitian=True)
        identities = torch.stack(
            [_identity_map(int(m), between, within, inverse) @ x
             for m, x in zip(sizes, sums, strict=True)]
        )  # fmt: skip
        between = covariance(identities[which], correction=1)
        within = covariance(values - identities[which], correction=1)
        if float((between - before[0]).norm() + (within - before[1]).norm()) <= tolerance:
            break
    return between, within


def _identity_map(m: int, between: Tensor, within: Tensor, inverse: Tensor) -> Tensor:
    """Returns the matrix that maps the sum of a class's m examples to the identity of the class."""
    return within @ torch.linalg.pinv(m * between + within, hermitian=True) @ between @ inverse


def drawn_half(values: Tensor, seed: int) -> Tensor:
    """Draws each row of `values` (n, d) with probability 1/2: bool (n,). The order of the rows does
    not affect which rows are drawn."""
    drawn = torch.rand(len(values), generator=torch.Generator().manual_seed(seed)) >= 0.5
    # Each group needs at least one row.
    drawn[0] = drawn[0] ^ bool(drawn.all() or not drawn.any())
    chosen = torch.empty_like(drawn)
    chosen[row_order(values)] = drawn
    return chosen


def two_groups(white: Tensor, start: Tensor) -> Tensor | None:
    """Returns which rows of `white` float64 (n, d) belong to the second of two groups: bool (n,).

    `start` bool (n,) is the initial second group. Alternates between computing the mean of each
    group and assigning each row to the group with the nearer mean, until the groups no longer
    change, but at most `STEPS` times. Returns None if all rows are equal.
    """
    centered = white - white.mean(dim=0)
    alike = float(centered.abs().max()) <= 1e-9 * float(white.abs().max()) if len(white) else True
    if len(white) < 2 or alike:
        return None
    second = start
    for _ in track(range(STEPS), "step"):
        first_mean, second_mean = centered[~second].mean(dim=0), centered[second].mean(dim=0)
        middle = (first_mean + second_mean) / 2
        now = (centered - middle) @ (second_mean - first_mean) > 0
        if torch.equal(now, second) or bool(now.all()) or not bool(now.any()):
            break
        second = now
    return second
