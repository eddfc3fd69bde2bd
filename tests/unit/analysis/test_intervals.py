"""Intervals of proportions and of their differences, compared with published values."""

from __future__ import annotations

import pytest
from scipy import stats

from backdoor_lab.analysis.intervals import newcombe, wilson


@pytest.mark.parametrize(
    ("one", "other", "interval"),
    [
        ((56, 70), (48, 80), (0.0524, 0.3339)),
        ((9, 10), (3, 10), (0.1705, 0.8090)),
        ((6, 7), (2, 7), (0.0582, 0.8062)),
        ((5, 56), (0, 29), (-0.0381, 0.1926)),
        ((0, 10), (0, 20), (-0.1611, 0.2775)),
        ((0, 10), (0, 10), (-0.2775, 0.2775)),
        ((10, 10), (0, 20), (0.6791, 1.0)),
        ((10, 10), (0, 10), (0.6075, 1.0)),
    ],
    ids=lambda value: "-".join(map(str, value)),
)
def test_the_interval_of_a_difference_has_the_values_of_table_2_of_newcombe_1998(
    one: tuple[int, int], other: tuple[int, int], interval: tuple[float, float]
) -> None:
    shares = one[0] / one[1], other[0] / other[1]
    found = newcombe(shares[0], one[1], shares[1], other[1])
    assert found == pytest.approx(interval, abs=6e-5)
    low, high = newcombe(shares[1], other[1], shares[0], one[1])
    assert (-high, -low) == pytest.approx(found, abs=1e-15)


@pytest.mark.parametrize("hits", [0, 1, 13, 60, 119, 120])
def test_the_interval_of_a_proportion_agrees_with_scipy(hits: int) -> None:
    theirs = stats.binomtest(hits, 120).proportion_ci(method="wilson")
    assert wilson(hits / 120, 120) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
