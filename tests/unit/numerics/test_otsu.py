"""Otsu's criterion, compared with its definition."""

from __future__ import annotations

import pytest
import torch

from backdoor_lab.defenses.budget import otsu_count
from backdoor_lab.defenses.scan import two_groups
from backdoor_lab.numerics.otsu import variance_between


@pytest.mark.parametrize("descending", [False, True])
def test_the_variance_between_groups_equals_a_direct_computation_for_every_cut(
    descending: bool,
) -> None:
    """The function returns n² times w₀ w₁ (μ₀ - μ₁)², where w and μ are the weights and means of
    the two groups."""
    values = torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ordered = values.sort(descending=descending).values
    by_hand = [
        k * (50 - k) * float(ordered[:k].mean() - ordered[k:].mean()) ** 2 for k in range(1, 50)
    ]
    expected = torch.tensor(by_hand, dtype=torch.float64)
    torch.testing.assert_close(variance_between(ordered), expected, rtol=1e-10, atol=0)


def test_otsus_threshold_minimizes_the_variance_within_the_groups() -> None:
    ordered = torch.tensor([0.0, 1.0, 2.0, 10.0, 11.0], dtype=torch.float64)
    within = [
        float((ordered[:k].var(correction=0) * k) + ordered[k:].var(correction=0) * (5 - k))
        for k in range(1, 5)
    ]
    assert int(variance_between(ordered).argmax()) == within.index(min(within)) == 2


def test_the_automatic_budget_splits_scores_at_the_same_position_as_the_defense_scan() -> None:
    scores = torch.tensor([0.0, 9.0, 1.0, 2.0, 10.0, 0.5], dtype=torch.float64)
    assert otsu_count(scores) == 2
    found = two_groups(scores[:, None], scores > 1.5)
    assert found is not None
    assert (found == (scores > 5)).all()
