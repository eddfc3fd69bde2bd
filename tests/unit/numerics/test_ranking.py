"""Ranking metrics, compared with their definitions. Records, pages and analyses share them."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch

from backdoor_lab.analysis.evidence import removal_curve
from backdoor_lab.defenses import curves
from backdoor_lab.numerics.ranking import auroc, positives_left, roc_steps

SCORES = np.array([3.0, 1.0, 2.0, 2.0, 0.0, 2.0])
POSITIVE = np.array([True, False, True, False, False, True])


def test_roc_steps_count_the_examples_at_or_above_each_score() -> None:
    true, false = roc_steps(SCORES, POSITIVE)
    assert true.tolist() == [0, 1, 3, 3, 3]
    assert false.tolist() == [0, 0, 1, 2, 3]


def test_auroc_is_the_fraction_of_correctly_ordered_pairs() -> None:
    pairs = itertools.product(SCORES[POSITIVE], SCORES[~POSITIVE])
    won = [(a > b) + (a == b) / 2 for a, b in pairs]
    assert auroc(SCORES, POSITIVE) == sum(won) / len(won)


@pytest.mark.parametrize("positive", [np.zeros(6, bool), np.ones(6, bool)],
                         ids=["no positive", "no negative"])  # fmt: skip
def test_auroc_is_nan_if_a_class_is_empty_or_a_score_is_infinite(positive: np.ndarray) -> None:
    assert np.isnan(auroc(SCORES, positive))
    assert np.isnan(auroc(np.append(SCORES[1:], np.inf), POSITIVE))


def test_the_number_of_positives_left_is_averaged_over_all_orders_of_ties() -> None:
    orders = [order for order in itertools.permutations(range(6))
              if all(SCORES[a] >= SCORES[b] for a, b in itertools.pairwise(order))]  # fmt: skip
    left = [[3 - POSITIVE[list(order[:k])].sum() for k in range(7)] for order in orders]
    found = positives_left(SCORES, POSITIVE, np.arange(7))
    np.testing.assert_allclose(found, np.mean(left, axis=0), atol=1e-12)


def test_the_removal_curve_drawn_in_figures_equals_the_recorded_curve() -> None:
    draw = np.random.default_rng(0)
    scores, positive = draw.normal(size=500).round(1), draw.random(500) < 0.2
    scores[:50] = np.nan
    picture = removal_curve(scores, positive)
    assert picture is not None
    recorded = curves.poison_left(torch.from_numpy(scores), torch.from_numpy(positive))
    assert len(recorded) > 100
    for removed, left in recorded:
        assert left == round(float(picture.left[removed]), 6)


def test_the_auroc_in_analyses_equals_the_auroc_in_records() -> None:
    draw = np.random.default_rng(0)
    scores, positive = draw.normal(size=500).round(1), draw.random(500) < 0.2
    recorded = curves.auroc(torch.from_numpy(scores), torch.from_numpy(positive))
    assert recorded == pytest.approx(auroc(scores, positive), abs=1e-15)


def test_ranking_metrics_need_no_torch() -> None:
    code = "import sys; import backdoor_lab.numerics.ranking; print('torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "False"
