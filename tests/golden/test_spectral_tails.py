"""The spectral filter with several directions, tail weights and rounds, compared with NumPy and on
Gaussian features."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from backdoor_lab.core.errors import ConfigError
from backdoor_lab.defenses.base import DefenderKnowledge, Features, FilterResult
from backdoor_lab.defenses.curves import auroc
from backdoor_lab.defenses.options import FilterOptions
from backdoor_lab.defenses.spectral import SpectralSignatures
from backdoor_lab.numerics.singular import top_direction

UNTOLD = DefenderKnowledge(("",), None, None, 0)
PLUS = {"rank": 16, "rounds": 4, "tail_power": 4}


def one_class(values: Tensor, budget: int, *, center: bool = True, **options: Any) -> FilterResult:
    known = DefenderKnowledge(("only",), 0, epsilon=None, seed=0)
    made = SpectralSignatures(FilterOptions(removal_budget=str(budget), center=center), **options)
    return made(Features(values, torch.zeros(len(values)).long()), known)


def by_numpy(
    values: np.ndarray, rows: np.ndarray, rank: int, power: float, *, center: bool = True
) -> np.ndarray:
    """The scores tau of `values` (n, d) along the top right singular vectors of `rows` (m, d)."""
    mean = rows.mean(axis=0)
    directions = np.linalg.svd(rows - mean, full_matrices=False)[2][:rank]
    tails = [
        one.var() / np.quantile(np.abs(one - np.median(one)), 0.6827) ** 2
        for one in directions @ (rows - mean).T
    ]
    squares = ((values - mean if center else values) @ directions.T) ** 2
    tau: np.ndarray = squares @ np.array(tails) ** power
    return tau if center else np.sqrt(tau)


def heavy(seed: int, n: int = 80) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_t(3, size=(n, 8)) * np.linspace(3, 1, 8) + 1
    return np.asarray(rows)


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("power", [0, 0.5, 3])
@pytest.mark.parametrize("rank", [1, 3, 100])
def test_tail_weights_match_a_second_implementation(rank: int, power: float, center: bool) -> None:
    values = heavy(rank + 4)
    made = SpectralSignatures(FilterOptions(center=center), rank=rank, tail_power=power)
    expected = by_numpy(values, values, rank, power, center=center)
    assert made.score_class(torch.from_numpy(values), 0, UNTOLD).scores.numpy() == pytest.approx(
        expected, rel=1e-7
    )


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize(("rank", "power"), [(1, 0), (1, 2), (3, 0), (3, 2)])
def test_scores_over_several_rounds_match_a_second_implementation(
    rank: int, power: float, center: bool
) -> None:
    """The scores of all rounds are added. Each round computes its directions from the rows that
    the earlier rounds kept."""
    values = heavy(7, n=60)
    total = by_numpy(values, values, rank, power, center=center)
    for gone in (3, 7):
        left = np.argsort(-total)[gone:]
        total = total + by_numpy(values, values[left], rank, power, center=center)
    options = {"rank": rank, "tail_power": power, "center": center}
    verdict = one_class(torch.from_numpy(values), 11, rounds=3, **options)
    assert verdict.scores.numpy() == pytest.approx(total, rel=1e-7)
    worst = np.argsort(-total)[:11]
    assert (~verdict.keep).nonzero().flatten().tolist() == sorted(worst.tolist())
    once = one_class(torch.from_numpy(values), 11, **options)
    assert not torch.allclose(verdict.scores, once.scores)


def test_a_second_round_finds_a_second_group_of_poison() -> None:
    values = torch.randn(300, 6, generator=torch.Generator().manual_seed(1)) * 0.5
    values[:15, 0] += 12
    values[15:30, 1] += 8
    assert int((~one_class(values, 30).keep)[:30].sum()) < 25
    assert (~one_class(values, 30, rounds=2).keep)[:30].all()
    assert (~one_class(values, 30, rank=2).keep)[:30].all()


@pytest.mark.parametrize("options", [{"rounds": 2}, PLUS])
def test_scores_of_earlier_rounds_still_count_in_later_rounds(options: dict[str, Any]) -> None:
    """After half of the poison is removed, the top direction is that of the class's own variance.
    The other half is still removed, because its scores from the first round count."""
    values = torch.randn(1000, 6, generator=torch.Generator().manual_seed(2))
    values[:, 1] *= 5
    values[:60, 0] += torch.linspace(20, 40, 60)
    assert top_direction(values).direction[0].abs() > 0.99
    left = torch.cat([values[:30], values[60:]])
    assert top_direction(left).direction[1].abs() > 0.9
    assert int(one_class(values, 60, **options).keep[:60].sum()) <= 2


@pytest.mark.parametrize("options", [{"rounds": 3}, PLUS])
def test_exactly_the_budget_is_removed_from_a_class_of_identical_rows(
    options: dict[str, Any],
) -> None:
    """All scores are 0 in every round, without NaN."""
    verdict = one_class(torch.full((20, 3), 0.1), 7, **options)
    assert int((~verdict.keep).sum()) == 7
    assert verdict.scores.tolist() == [0.0] * 20


@pytest.mark.parametrize("removed", [1, 2, 19])
def test_exactly_the_budget_is_removed_if_there_are_more_rounds_than_images_to_remove(
    removed: int,
) -> None:
    values = torch.from_numpy(heavy(1, n=20))
    verdict = one_class(values, removed, rank=3, rounds=30, tail_power=4)
    assert int((~verdict.keep).sum()) == removed
    assert torch.isfinite(verdict.scores).all()


def outweighed(share: float, delta: float, seed: int) -> tuple[Tensor, Tensor]:
    """The values of a class of 5,000 examples in 24 dimensions and its poison mask. The standard
    deviation along one axis is three times that along the others, and poison is shifted by `delta`
    along another axis."""
    rng = np.random.default_rng(seed)
    poisoned = round(5000 * share)
    values = rng.normal(size=(5000 + poisoned, 24)) * np.r_[3.0, np.ones(23)]
    values[5000:, 1] += delta
    return torch.from_numpy(values), torch.arange(len(values)) >= 5000


@pytest.mark.parametrize("seed", range(3))
def test_weighted_directions_find_poison_hidden_by_the_class_variance(seed: int) -> None:
    """Poison that is p = 5 % of the class and five standard deviations away causes a variance of
    p(1-p)25 + 1 = 2.2 along its axis. The largest variance of the class is 9. The top direction
    misses this poison, but weighted directions find it. Both find poison that is 10 % of the class
    and 15 standard deviations away."""
    values, poison = outweighed(0.05, 5, seed)
    removed = round(1.5 * int(poison.sum()))
    top, plus = one_class(values, removed), one_class(values, removed, **PLUS)
    assert auroc(top.scores, poison) == pytest.approx(0.5, abs=0.06)
    assert auroc(plus.scores, poison) > 0.97
    assert int(poison[plus.keep].sum()) < 0.1 * int(poison.sum())
    values, poison = outweighed(0.1, 15, seed)
    for options in ({}, PLUS):
        assert not poison[one_class(values, 750, **options).keep].any()


def test_scores_do_not_separate_poison_that_is_half_of_its_class() -> None:
    """If half of a class is poison, no squared centered score separates it along any direction."""
    values, poison = outweighed(1.0, 8, 0)
    for found in (SpectralSignatures(), SpectralSignatures(rank=8, tail_power=4)):
        assert auroc(found.score_class(values, 0, UNTOLD).scores, poison) == pytest.approx(
            0.5, abs=0.05
        )


@pytest.mark.parametrize("bad", [-1, 16, float("nan"), "tail", True, None])
def test_a_bad_tail_power_is_refused(bad: Any) -> None:
    with pytest.raises(ConfigError, match=r"`defense\.tail_power` must satisfy 0 <= .* < 16"):
        SpectralSignatures(tail_power=bad)
