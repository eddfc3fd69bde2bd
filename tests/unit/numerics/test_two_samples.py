"""The anomaly index of values whose median absolute deviation is 0."""

from __future__ import annotations

import math

import torch

from backdoor_lab.numerics.two_samples import anomaly_index


def test_the_index_is_finite_if_most_values_are_equal() -> None:
    found = anomaly_index(torch.tensor([2.0, 2.0, 9.0, 2.0, 2.0], dtype=torch.float64)).tolist()
    assert found[:2] + found[3:] == [0.0] * 4
    assert math.isfinite(found[2])
    assert found[2] > 1e300


def test_the_index_of_other_values_follows_the_formula() -> None:
    found = anomaly_index(torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64))
    expected = torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64) / 1.4826
    assert torch.equal(found, expected)
