"""Spectral signatures."""

from __future__ import annotations

from dataclasses import dataclass

from backdoor_lab.core import checks
from backdoor_lab.core.lazy import Tensor, torch
from backdoor_lab.core.progress import track
from backdoor_lab.defenses.base import Knowledge, Look, cut, suspects_by_size
from backdoor_lab.defenses.options import DEFAULTS, FilterOptions
from backdoor_lab.defenses.principal import Principal
from backdoor_lab.numerics.singular import top_direction, top_directions

STEEPEST = 16.0
"""`tail_power` stays below: from here on numbers overflow."""


class Spectral(Principal):
    """Removes the examples that lie farthest along their class' top singular direction.

    Tran, Li, Madry, "Spectral Signatures in Backdoor Attacks", NeurIPS 2018, Algorithm 1:
    tau_i = ((R(x_i) - mean R) . v)^2 with v the top right singular vector of the centred n x d
    matrix. With ``centred=False`` tau_i = |R(x_i) . v| with the same v, as several widely used
    implementations score, for comparison: it fails when the poison is shifted against the mean.

    `rank`: how many top directions; the squared projections on them are added up, each times its
    direction's `tail` to the power `tail_power` (0: all count alike). A few that lie far out, as
    poison does, make a heavy tail also where the class varies more along other directions: what
    Peña and Prieto, "Multivariate Outlier Detection and Robust Covariance Matrix Estimation",
    Technometrics 43(3), 2001, look for by kurtosis. The weights are this lab's own.
    `rounds`: mean, directions and weights are taken so many times, each time from what the scores
    so far leave when another equal share of the budget goes, and tau adds up over the rounds, of
    which the first sees the whole class. Rousseeuw and Van Driessen, "A Fast Algorithm for the
    Minimum Covariance Determinant Estimator", Technometrics 41(3), 1999, take mean and scatter
    anew from the most central examples so; the sum is this lab's: poison that an early round
    finds is not forgotten by later ones, whose directions no longer point at it.

    ``classes=suspicious``: those whose `tail` along a top direction stands out among the
    classes; their plain variance differs too much between clean classes to tell anything. Of
    1,000 drawn clean sets of ten classes whose variances differ by factors, 0.8 % had a class
    accused, 1.8 % when the classes were heavier-tailed than normal; with a twentieth of one
    class six standard deviations off, that class was found in 96 % and 82 % of 400 sets.
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
        self.rank = checks.whole("defense.rank", rank, low=1)
        self.rounds = checks.whole("defense.rounds", rounds, low=1)
        self.tail_power = checks.number("defense.tail_power", tail_power, low=0, below=STEEPEST)

    def look(self, values: Tensor, label: int, known: Knowledge) -> Look:
        axes = self._axes(values)
        tails = self._tails(axes.along)
        return Look(self._tau(axes.along, axes.offset, tails), float(tails.max()))

    def _axes(self, values: Tensor) -> _Axes:
        if self.rank == 1:
            found = top_direction(values)
            offset = found.along.new_tensor([found.offset])
            return _Axes(found.direction[:, None], offset, found.along[:, None])
        mean = values.double().mean(dim=0)
        centred = values.double() - mean
        _, directions = top_directions(centred, self.rank)
        return _Axes(directions, mean @ directions, centred @ directions)

    @staticmethod
    def _tails(along: Tensor) -> Tensor:
        return along.new_tensor([tail(each) for each in along.T])

    def _tau(self, along: Tensor, offset: Tensor, tails: Tensor) -> Tensor:
        weights = tails**self.tail_power
        if self.options.centred:
            return along.square() @ weights
        return ((along + offset).square() @ weights).sqrt()

    def suspects(self, looks: dict[int, Look]) -> list[int]:
        return suspects_by_size(looks)

    def final(self, values: Tensor, scores: Tensor, removed: int, seed: int) -> Tensor:
        total = scores.double()
        for done in track(range(1, self.rounds), "round"):
            gone = cut(total.cpu(), done * removed // self.rounds, seed=seed)
            left = torch.ones(len(values), dtype=torch.bool)
            left[gone] = False
            axes = self._axes(values[left.to(values.device)])
            along = values.double() @ axes.directions - axes.offset
            total = total + self._tau(along, axes.offset, self._tails(axes.along))
        return total


@dataclass(frozen=True)
class _Axes:
    """`directions` float64 (d, r); `offset` (r,) what the mean projects to; `along` (n, r) what
    the rows less the mean do."""

    directions: Tensor
    offset: Tensor
    along: Tensor


def tail(x: Tensor) -> float:
    """The variance of `x` float64 (n,) over its square half-width: 1 for a normal sample, more
    where a few lie far out, 1 where nothing varies. Free of scale.

    The half-width is the distance from the median within which 68.27 % lie.
    """
    variance = x.square().mean() - x.mean().square()
    if float(variance) <= 0:
        return 1.0
    width = (x - x.quantile(0.5)).abs().quantile(0.6827).square()
    return float(variance / width.clamp(min=float(variance) * 1e-12))
