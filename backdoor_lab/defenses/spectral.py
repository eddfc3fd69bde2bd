"""The spectral signatures filter."""

from __future__ import annotations

from dataclasses import dataclass

from backdoor_lab.core import validation
from backdoor_lab.core.lazy import Tensor, torch
from backdoor_lab.core.progress import track
from backdoor_lab.defenses.base import ClassScores, DefenderKnowledge, suspects_by_size, top_scoring
from backdoor_lab.defenses.options import DEFAULTS, FilterOptions
from backdoor_lab.defenses.principal import Principal
from backdoor_lab.numerics.singular import top_direction, top_directions

STEEPEST = 16.0
"""Exclusive upper bound of `tail_power`; larger exponents cause overflow."""


class SpectralSignatures(Principal):
    """Removes the examples with the largest projections onto their class's top singular direction.

    Tran, Li, Madry, "Spectral Signatures in Backdoor Attacks", NeurIPS 2018, Algorithm 1: tau_i =
    ((R(x_i) - mean R) . v)^2, where v is the top right singular vector of the centered n x d
    matrix. With ``center=False``, for comparison, tau_i = |R(x_i) . v| with the same v, as in
    several widely used implementations; this score misses poison that is shifted in the direction
    opposite to the class mean.

    `rank` is the number of top directions; the squared projections are summed, each weighted by its
    direction's `tail` to the power `tail_power` (0: equal weights). A few distant examples, such as
    poison, make the tail heavy even if the class varies more along other directions; Peña and
    Prieto, "Multivariate Outlier Detection and Robust Covariance Matrix Estimation", Technometrics
    43(3), 2001, use kurtosis in the same way. The weights are an extension. `rounds` is the number
    of rounds. The first round uses the whole class. Round k + 1 recomputes the mean, the
    directions and the weights without the examples that have the highest total scores in rounds 1
    to k; the number of these examples is the fraction k / `rounds` of the budget. Tau is summed
    over all rounds. Rousseeuw and Van Driessen, "A Fast Algorithm for the Minimum Covariance
    Determinant Estimator", Technometrics 41(3), 1999, re-estimate the mean and the scatter in the
    same way. The sum is an extension: poison that an early round finds keeps its high score,
    although the directions of later rounds no longer point toward it.

    ``filter_scope=suspicious`` selects classes whose `tail` along a top direction is an outlier
    among the classes; the variance itself differs too much between clean classes to be used. Of
    1,000 simulated clean sets of ten classes with very different variances, 0.8 % had a flagged
    class (1.8 % if the tails were heavier than normal). If a twentieth of one class was shifted by
    six standard deviations, that class was found in 96 % of 400 sets (82 % with heavier tails).
    """

    unused = ()

    def __init__(
        self,
        options: FilterOptions = DEFAULTS,
        *,
        rank: int = 1,
        rounds: int = 1,
        tail_power: float = 0,
    ) -> None:
        super().__init__(options)
        self.rank = validation.whole("defense.rank", rank, low=1)
        self.rounds = validation.whole("defense.rounds", rounds, low=1)
        self.tail_power = validation.number("defense.tail_power", tail_power, low=0, below=STEEPEST)

    def score_class(self, values: Tensor, label: int, known: DefenderKnowledge) -> ClassScores:
        axes = self._axes(values)
        tails = self._tails(axes.along)
        return ClassScores(self._tau(axes.along, axes.offset, tails), float(tails.max()))

    def _axes(self, values: Tensor) -> _Axes:
        if self.rank == 1:
            found = top_direction(values)
            offset = found.along.new_tensor([found.offset])
            return _Axes(found.direction[:, None], offset, found.along[:, None])
        mean = values.double().mean(dim=0)
        centered = values.double() - mean
        _, directions = top_directions(centered, self.rank)
        return _Axes(directions, mean @ directions, centered @ directions)

    @staticmethod
    def _tails(along: Tensor) -> Tensor:
        return along.new_tensor([tail(each) for each in along.T])

    def _tau(self, along: Tensor, offset: Tensor, tails: Tensor) -> Tensor:
        weights = tails**self.tail_power
        if self.options.center:
            return along.square() @ weights
        return ((along + offset).square() @ weights).sqrt()

    def suspicious_classes(self, scores_of: dict[int, ClassScores]) -> list[int]:
        return suspects_by_size(scores_of)

    def refine_scores(self, values: Tensor, scores: Tensor, removed: int, seed: int) -> Tensor:
        total = scores.double()
        for done in track(range(1, self.rounds), "round"):
            gone = top_scoring(total.cpu(), done * removed // self.rounds, seed=seed)
            left = torch.ones(len(values), dtype=torch.bool)
            left[gone] = False
            axes = self._axes(values[left.to(values.device)])
            along = values.double() @ axes.directions - axes.offset
            total = total + self._tau(along, axes.offset, self._tails(axes.along))
        return total


@dataclass(frozen=True)
class _Axes:
    """Top directions of a class: `directions` float64 (d, r); `offset` (r,), the projections of the
    mean; `along` (n, r), the projections of the centered rows."""

    directions: Tensor
    offset: Tensor
    along: Tensor


def tail(x: Tensor) -> float:
    """Returns the variance of `x` float64 (n,) divided by the squared half-width of `x`, which is
    the distance from the median within which 68.27 % of the values lie.

    The result is about 1 for a normal sample, larger if there are a few distant values, and 1 if
    the variance is zero. The result does not depend on the scale of `x`.
    """
    variance = x.square().mean() - x.mean().square()
    if float(variance) <= 0:
        return 1.0
    width = (x - x.quantile(0.5)).abs().quantile(0.6827).square()
    return float(variance / width.clamp(min=float(variance) * 1e-12))
