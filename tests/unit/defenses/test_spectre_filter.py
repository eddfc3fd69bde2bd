"""SPECTRE: its estimator and score, compared with second implementations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import expm
from torch import Tensor

from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.types import Features
from backdoor_lab.defenses.base import DefenderKnowledge
from backdoor_lab.defenses.curves import auroc
from backdoor_lab.defenses.options import FilterOptions
from backdoor_lab.defenses.spectral import SpectralSignatures
from backdoor_lab.defenses.spectre import SPECTRE, que
from backdoor_lab.numerics.robust_covariance import filtered, root_of

KNOWN = DefenderKnowledge(("only",), 0, 30, seed=3)


def hidden(n: int = 600, d: int = 12, shift: float = 6.0, poisoned: int = 30) -> Tensor:
    """A class with one wide axis, whose last rows are shifted along a narrow axis."""
    values = torch.randn(n, d, generator=torch.Generator().manual_seed(0)).double()
    values[:, 0] *= 10
    values[n - poisoned :, 5] += shift
    return values


def test_whitening_finds_poison_that_spectral_signatures_miss() -> None:
    """Poison is six standard deviations away on a narrow axis. Plain spectral scores are at chance
    level. Scores after whitening find all of it (the paper's figure 1)."""
    values = hidden()
    is_poison = torch.arange(600) >= 570
    assert auroc(SpectralSignatures().score_class(values, 0, KNOWN).scores, is_poison) < 0.7
    found = SPECTRE()(Features(values.float(), torch.zeros(600).long()), KNOWN)
    assert auroc(found.scores, is_poison) > 0.999
    assert not found.keep[570:].any()
    assert int((~found.keep).sum()) == 45


def test_automatic_rank_includes_the_direction_of_the_poison() -> None:
    """The wide axis is the first component. With k = 1 the poison would be missed, so the rule
    selects a larger k."""
    values = hidden()
    assert SPECTRE().score_class(values, 0, KNOWN).notes["rank"] == 9
    one = SPECTRE(rank=1).score_class(values, 0, KNOWN)
    assert one.notes["rank"] == 1
    assert auroc(one.scores, torch.arange(600) >= 570) < 0.7


def test_que_scores_match_the_matrix_exponential_of_scipy() -> None:
    """The score is tau = h^T Q h / tr Q with Q = exp(alpha (S - I) / (||S|| - 1))."""
    white = torch.randn(200, 4, generator=torch.Generator().manual_seed(1)).double()
    white = white * torch.tensor([2.0, 1.1, 1, 0.7])
    s = np.cov(white.numpy().T)
    q = expm(4 * (s - np.eye(4)) / (np.linalg.norm(s, 2) - 1))
    expected = np.einsum("ij,jk,ik->i", white.numpy(), q, white.numpy()) / np.trace(q)
    assert que(white, 4).numpy() == pytest.approx(expected)


def test_que_scores_have_known_limits_for_small_and_large_alpha() -> None:
    """With alpha = 0, or if no variance exceeds 1, the score is the squared length divided by k.
    With a large alpha, the score depends only on the top direction."""
    white = torch.randn(300, 3, generator=torch.Generator().manual_seed(1)).double()
    white[:, 1] *= 3
    assert torch.allclose(que(white, 0), white.square().mean(dim=1))
    _, axes = torch.linalg.eigh(torch.from_numpy(np.cov(white.numpy().T)))
    assert torch.allclose(que(white, 1e4), (white @ axes[:, -1]).square())
    small = white / 10
    assert torch.allclose(que(small, 4), small.square().mean(dim=1))


def test_the_filter_removes_a_distant_cluster_and_nothing_from_a_normal_class() -> None:
    """A distant cluster that is a twentieth of the class is removed, and hardly anything else.
    Nothing is removed from a normal class."""
    points = torch.randn(2000, 5, generator=torch.Generator().manual_seed(2)).double()
    assert filtered(points - points.mean(dim=0), 0.05, 0.1, 200).all()
    points[:100] += 12
    kept = filtered(points - points.mean(dim=0), 0.05, 0.1, 200)
    assert not kept[:100].any()
    assert kept[100:].double().mean() > 0.94


def test_the_filter_removes_at_most_its_limit() -> None:
    """With a limit of 40 rows the filter ends before the cluster of 100 is removed. With a limit of
    0 it keeps all rows."""
    points = torch.randn(2000, 5, generator=torch.Generator().manual_seed(2)).double()
    points[:100] += 12
    points -= points.mean(dim=0)
    assert int((~filtered(points, 0.05, 0.1, 40)).sum()) == 40
    assert filtered(points, 0.05, 0.1, 0).all()
    assert filtered(points, 0.0, 0.1, 40).all()


def test_whitening_gives_unit_covariance_and_ignores_axes_without_variance() -> None:
    points = torch.randn(300, 3, generator=torch.Generator().manual_seed(4)).double()
    points[:, 2] = 0
    root = root_of(points.T @ points / 300, points)
    white = points @ root
    assert torch.isfinite(root).all()
    expected = torch.diag(torch.tensor([1.0, 1, 0])).double()
    assert torch.allclose(white.T @ white / 300, expected, atol=1e-9)


def test_scores_depend_neither_on_order_nor_dtype_nor_scale() -> None:
    """Scores are compared for shuffled rows, for float32 (within its precision), and for other
    scales and shifts of the features."""
    values = hidden(300)
    made = SPECTRE()
    scores = made.score_class(values, 0, KNOWN).scores
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(
        made.score_class(values[order], 0, KNOWN).scores, scores[order], rtol=1e-7
    )
    assert torch.allclose(made.score_class(values.float(), 0, KNOWN).scores, scores, rtol=1e-3)
    assert torch.allclose(made.score_class(7 * values - 3, 0, KNOWN).scores, scores, rtol=1e-7)


@pytest.mark.parametrize("values", [torch.full((50, 4), 0.1), torch.randn(9, 4), torch.ones(1, 2)])
def test_too_small_and_constant_classes_are_skipped(values: Tensor) -> None:
    """If rows are identical or fewer than ten, all scores are 0 and there is a note."""
    look = SPECTRE().score_class(values, 0, KNOWN)
    assert not look.scores.any()
    assert "skipped" in look.notes


def test_poison_stands_out_in_an_otherwise_constant_class() -> None:
    values = torch.zeros(100, 3)
    values[:5] = 1.0
    scores = SPECTRE(FilterOptions(removal_budget="10")).score_class(values, 0, KNOWN).scores
    assert torch.isfinite(scores).all()
    assert float(scores[:5].min()) > 100 * float(scores[5:].max())


def test_suspicious_classes_are_those_with_planted_poison() -> None:
    """Of ten clean classes, none is suspicious. After poison is planted in one class, only that
    class is."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2000, 6, generator=generator)
    labels = torch.arange(2000) % 10
    blind = SPECTRE(FilterOptions(filter_scope="suspicious", removal_budget="15%"))
    known = DefenderKnowledge(tuple("abcdefghij"), None, None, seed=0)
    assert blind(Features(values, labels), known).notes["classes"] == []
    planted = (labels == 4).nonzero().flatten()[:20]
    values[planted, 3] += 9
    found = blind(Features(values, labels), known)
    assert found.notes["classes"] == ["e"]
    assert not found.keep[planted].any()


@pytest.mark.parametrize(
    ("name", "value"),
    [("rank", 0), ("max_rank", 0), ("alpha", -1), ("tau", 0), ("filter_limit", -1), ("layer", 3)],
)  # fmt: skip
def test_an_invalid_option_is_refused_and_named_in_the_error(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"defense\.{name}"):
        SPECTRE(**{name: value})
