"""SCAn: does a class fall into two groups?"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from backdoor_lab.core import checks
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.lazy import Tensor, torch
from backdoor_lab.core.progress import track
from backdoor_lab.core.types import Features
from backdoor_lab.defenses.base import Knowledge, Look, finite, modified_z
from backdoor_lab.defenses.options import DEFAULTS, FilterOptions
from backdoor_lab.defenses.principal import Principal
from backdoor_lab.numerics.otsu import variance_between
from backdoor_lab.numerics.singular import top_directions

STEPS = 100


class Scan(Principal):
    """Splits each class in two by the way clean classes vary, and suspects the foreign part.

    Tang, Wang, Tang, Zhang, "Demon in the Variant: Statistical Analysis of DNNs for Robust
    Backdoor Contamination Detection", USENIX Security 2021. Features are a class identity plus
    a variation that all classes share, r = mu + e, mu ~ N(0, S_mu), e ~ N(0, S_e); both
    covariances come from clean images that were held out (`variation`). For each class the
    log-likelihood ratio J of two groups with that variation against one, per example; J* is
    how many MAD it lies above the median class, in units of a standard deviation. A class
    with J* above `threshold` (the paper's e^2) is suspicious, and ``budget=auto`` removes its
    suspicious group.

    The group that lies nearer to the clean examples of the class is the good one; without any,
    the larger. Score: the log-likelihood ratio of the other group to the good one, positive for
    exactly its members. Four things differ from the paper: S_e is shrunk (Ledoit and Wolf
    2004), so that it can be inverted when the held-out images are fewer than the dimensions;
    its estimation is complete (see `variation`); J* counts upward only; the two groups start
    from the class' top direction, not at random.
    """

    def __init__(
        self,
        options: FilterOptions = DEFAULTS,
        *,
        threshold: float = math.e**2,
    ) -> None:
        super().__init__(options)
        self.threshold = checks.number("defense.threshold", threshold, low=0)

    def told(self) -> list[str]:
        return [*super().told(), "clean"]

    def look(self, values: Tensor, label: int, known: Knowledge) -> Look:
        return self._look(values, label, Variation.of(known), values.double().mean(dim=0))

    def survey(
        self,
        features: Features,
        members: dict[int, Tensor],
        wanted: Iterable[int],
        known: Knowledge,
    ) -> dict[int, Look]:
        model = Variation.of(known)
        middle = features.values.double().mean(dim=0)
        looks = {
            y: self._look(features.values[where], y, model, middle)
            for y, where in track(members.items(), "class")
        }
        ratios = torch.tensor([look.suspicion for look in looks.values()], dtype=torch.float64)
        # Two classes have one distance from their median: neither stands out.
        index = modified_z(ratios).tolist()
        return {
            y: self._ruled(look, star)
            for (y, look), star in zip(looks.items(), index, strict=True)
            if y in wanted
        }

    def suspects(self, looks: dict[int, Look]) -> list[int]:
        return [y for y, look in looks.items() if (look.suspicion or 0.0) > self.threshold]

    def _ruled(self, look: Look, star: float) -> Look:
        group = int((look.scores > 0).sum())
        notes = look.notes | {"J": look.suspicion, "J*": star}
        return replace(
            look, suspicion=star, auto=group if star > self.threshold else 0, notes=notes
        )

    @staticmethod
    def _look(values: Tensor, label: int, model: Variation, middle: Tensor) -> Look:
        white = (values.double() - middle) @ model.whiten
        second = two_groups(white)
        nothing = torch.zeros(len(white), dtype=torch.float64)
        if second is None:
            return Look(nothing, 0.0, 0, {"skipped": "fewer than two different examples"})
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
        return Look(from_good - from_other, ratio)


@dataclass(frozen=True)
class Variation:
    """What held-out images say. `whiten` (d, d) makes the variation within a class I; `between`
    (d, d) is the covariance of the class identities after it; `means` of the clean classes."""

    whiten: Tensor
    between: Tensor
    means: dict[int, Tensor]

    @classmethod
    def of(cls, known: Knowledge) -> Variation:
        """From `known.clean`. Raises ConfigError when that was not told, or has one class."""
        clean = known.clean
        if clean is None or len(clean.labels.unique()) < 2:
            raise ConfigError(
                "`defense=scan` needs features of clean images that were held out, of two"
                " classes or more (Knowledge.clean): choose a protocol that holds some out"
            )
        finite(clean.values, "rows of clean features")
        values = clean.values.double()
        if not bool((values - values[0]).any()):
            raise ConfigError("`defense=scan`: the clean images' features are all alike")
        identity, within = variation(values, clean.labels)
        eigenvalues, axes = torch.linalg.eigh(within)
        whiten = axes / eigenvalues.clamp(min=float(eigenvalues[-1]) * 1e-12 + 1e-300).sqrt()
        means = {int(y): values[clean.labels == y].mean(dim=0) for y in clean.labels.unique()}
        return cls(whiten, whiten.T @ identity @ whiten, means)

    def own(self, label: int, middle: Tensor) -> Tensor | None:
        """The clean mean (d,) of a class, whitened; None where no clean example was told."""
        return (self.means[label] - middle) @ self.whiten if label in self.means else None

    def identity(self, white: Tensor) -> Tensor:
        """The identity (d,) of one class that `white` (n, d) most likely has: its mean, drawn
        towards 0 by the prior N(0, `between`)."""
        both = self.between + torch.eye(len(self.between), dtype=white.dtype) / len(white)
        return self.between @ torch.linalg.solve(both, white.mean(dim=0))


def variation(values: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Covariances (d, d) of identity and of variation from clean `values` float64 (n, d).

    Expectation maximisation (paper, section 4; Chen et al., "Bayesian Face Revisited", ECCV
    2012). A class' identity given the mean of its m examples is normal about
    S_mu (S_mu + S_e / m)^-1 mean; both covariances are taken anew from the identities, from
    what is left, and from how unsure the identities are. The sources leave that last part out,
    and S_mu then shrinks to nothing along axes on which classes overlap.
    """
    from sklearn.covariance import ledoit_wolf_shrinkage  # type: ignore[import-untyped]

    values = values - values.mean(dim=0)
    _, which, sizes = labels.unique(return_inverse=True, return_counts=True)
    m = sizes[:, None].double()
    means = torch.zeros(len(m), values.shape[1]).double().index_add(0, which, values) / m
    left = values - means[which]
    # Not quite 0, so that dead features can be divided by.
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
    """T (d, d) and r (d,) with within = T T' and between = T diag(r) T'."""
    root = torch.linalg.cholesky(within)
    half = torch.linalg.solve_triangular(root, between, upper=False)
    ratio, turn = torch.linalg.eigh(torch.linalg.solve_triangular(root, half.T, upper=False))
    return root @ turn, ratio.clamp(min=0)


def two_groups(white: Tensor) -> Tensor | None:
    """Which rows of `white` float64 (n, d) belong to the second of two groups: bool (n,).

    The split with the greatest likelihood when both groups vary by I, found by turns: means,
    then the half-space between them, from the best cut along the top direction; a local best.
    None when no two rows differ.
    """
    centred = white - white.mean(dim=0)
    _, directions = top_directions(centred, 1)
    along = centred @ directions[:, 0]
    if len(along) < 2 or float(along.max() - along.min()) <= 1e-9 * float(white.abs().max()):
        return None
    second = along > _best_cut(along)
    for _ in track(range(STEPS), "step"):
        first_mean, second_mean = centred[~second].mean(dim=0), centred[second].mean(dim=0)
        middle = (first_mean + second_mean) / 2
        now = (centred - middle) @ (second_mean - first_mean) > 0
        if torch.equal(now, second) or bool(now.all()) or not bool(now.any()):
            break
        second = now
    return second


def _best_cut(x: Tensor) -> float:
    """The value that parts `x` (n,), n > 1, into two groups of least variance (Otsu 1979)."""
    ordered = x.sort().values
    between = variance_between(ordered)
    between[ordered[1:] <= ordered[:-1]] = -1
    at = int(between.argmax())
    return float(ordered[at] + ordered[at + 1]) / 2


def _shrink(covariance: Tensor, share: float) -> Tensor:
    level = covariance.diagonal().mean()
    even = torch.eye(len(covariance), dtype=covariance.dtype)
    return (1 - share) * covariance + share * level * even
