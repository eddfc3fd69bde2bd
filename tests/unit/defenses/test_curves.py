"""Ranking metrics and removal curves, with and without ties, compared with scikit-learn and with
values computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve
from torch import Tensor

from backdoor_lab.core.atomic_io import canonical
from backdoor_lab.defenses.curves import (
    auroc,
    average_precision,
    curves,
    poison_left,
    tpr_at_fpr,
)

NAN = float("nan")


def ranking(kinds: int, n: int = 400) -> tuple[Tensor, Tensor]:
    """Scores with `kinds` distinct values. A fifth of the examples is positive and has higher
    scores on average."""
    rng = np.random.default_rng(kinds)
    positive = rng.random(n) < 0.2
    scores = np.floor(rng.beta(2 + 2 * positive, 3) * kinds)
    return torch.from_numpy(scores), torch.from_numpy(positive)


@pytest.mark.parametrize("kinds", [2, 7, 40, 100_000])
def test_ranking_metrics_agree_with_sklearn(kinds: int) -> None:
    """AUROC, average precision and TPR at a given FPR are compared, with many, some and no ties."""
    scores, positive = ranking(kinds)
    assert auroc(scores, positive) == pytest.approx(roc_auc_score(positive, scores), abs=1e-12)
    expected = average_precision_score(positive, scores)
    assert average_precision(scores, positive) == pytest.approx(expected, abs=1e-12)
    fpr, tpr, _ = roc_curve(positive, scores, drop_intermediate=False)
    for limit in (0, 0.01, 0.05, 0.5, 1):
        expected = tpr[fpr <= limit].max()
        assert tpr_at_fpr(scores, positive, limit) == pytest.approx(expected, abs=1e-12)


def test_ranking_metrics_ignore_unscored_poison_but_the_removal_curve_counts_it_as_left() -> None:
    scores, positive = ranking(40)
    unseen = torch.full((50,), NAN, dtype=torch.float64)
    all_scores = torch.cat([scores, unseen])
    all_positive = torch.cat([positive, torch.arange(50) % 5 == 0])
    found = curves(all_scores, all_positive)
    assert found is not None
    assert found["auroc"] == auroc(scores, positive)
    assert found["average_precision"] == average_precision(scores, positive)
    limits = {"0.01": 0.01, "0.05": 0.05}
    assert found["tpr_at_fpr"] == {k: tpr_at_fpr(scores, positive, v) for k, v in limits.items()}
    left = poison_left(all_scores, all_positive)
    assert found["left"] == left
    assert left[0] == (0, int(all_positive.sum()))
    assert left[-1] == (400, 10)
    canonical(found)


def test_ranking_metrics_that_are_undefined_are_none() -> None:
    """Without poison there are no metrics and no curves. If all examples are poison, or none has a
    score, there are no metrics, but there is a removal curve."""
    nothing = torch.zeros(4, dtype=torch.bool)
    scores = torch.tensor([3.0, 2, 1, 0]).double()
    assert curves(scores, nothing) is None
    for some in (curves(scores, ~nothing), curves(scores * NAN, torch.arange(4) == 1)):
        assert some is not None
        rates = [some[key] for key in ("auroc", "average_precision", "tpr_at_fpr")]
        assert rates == [None, None, None]
    assert poison_left(scores, ~nothing) == [(0, 4.0), (1, 3.0), (2, 2.0), (3, 1.0), (4, 0.0)]
    assert poison_left(scores * NAN, torch.arange(4) == 1) == [(0, 1.0)]
    assert poison_left(scores[:0], nothing[:0]) == [(0, 0.0)]


def test_the_poison_left_after_each_removal_matches_values_computed_by_hand() -> None:
    """The scores are 9, 5, 5, 5, 1. The example with score 9 and one of those with score 5 are
    poison. Each removal among the ties removes a third of a poisoned example on average."""
    scores = torch.tensor([5.0, 9, 5, 1, 5]).double()
    is_poison = torch.tensor([True, True, False, False, False])
    expected = [(0, 2.0), (1, 1.0), (2, 0.666667), (3, 0.333333), (4, 0.0), (5, 0.0)]
    assert poison_left(scores, is_poison) == expected


@pytest.mark.parametrize("kinds", [3, 50, 100_000])
def test_the_poison_left_is_averaged_over_all_orders_of_tied_scores(kinds: int) -> None:
    """The result is compared with the mean over many removals with ties in random order."""
    scores, positive = ranking(kinds, 60)
    rng = np.random.default_rng(0)
    total = np.zeros(61)
    rounds = 3000
    for _ in range(rounds):
        order = np.lexsort((rng.random(60), -scores.numpy()))
        total += positive.sum().item() - np.append(0, positive.numpy()[order].cumsum())
    for removed, left in poison_left(scores, positive):
        assert left == pytest.approx(total[removed] / rounds, abs=0.15)


def test_the_removal_curve_has_at_most_200_points() -> None:
    """The curve goes from no example removed to all removed, and never rises."""
    n = 50_000
    scores = torch.arange(n, dtype=torch.float64)
    curve = poison_left(scores, scores >= n - 500)
    assert len(curve) <= 200
    removed, left = zip(*curve, strict=True)
    assert (removed[0], removed[-1], left[0], left[-1]) == (0, n, 500, 0)
    assert list(removed) == sorted(set(removed))
    assert all(rest == max(0, 500 - gone) for gone, rest in curve)
    assert sum(gone <= 1000 for gone in removed) >= 20
