"""P values relative to a reference: maxT, studentized statistics, validity under the null."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from backdoor_lab.core.errors import ConfigError
from backdoor_lab.scan.calibration import LEAST, check_alpha, max_t, studentized


def by_hand(statistics: np.ndarray, floor: list[float]) -> np.ndarray:
    """The definition, value by value."""
    found = np.zeros_like(statistics)
    for row, values in enumerate(statistics):
        for column, value in enumerate(values):
            others = [v for k, v in enumerate(values) if k != column]
            middle = float(np.median(others))
            spread = float(np.median([abs(v - middle) for v in others]))
            found[row, column] = (value - middle) / (1.4826 * spread + floor[row])
    return found


def test_statistics_are_studentized_by_the_median_and_mad_of_the_other_classes() -> None:
    statistics = np.random.default_rng(0).normal(size=(3, 10))
    floor = [0.0, 0.1, 2.0]
    np.testing.assert_allclose(studentized(statistics, floor), by_hand(statistics, floor))


def test_a_class_does_not_hide_itself_in_its_own_scale() -> None:
    """If the class were among those that give the scale, its value would be bounded."""
    statistics = np.array([[0.0, 1.0, -1.0, 2.0, 1000.0]])
    assert studentized(statistics, [0.0])[0, 4] > 500


def test_equal_classes_have_statistic_zero_and_one_different_class_a_finite_one() -> None:
    same = np.zeros((1, 6))
    assert studentized(same, [0.0]).tolist() == [[0.0] * 6]
    same[0, 2] = 1.0
    found = studentized(same, [0.0])
    assert np.isfinite(found).all()
    assert found[0].argmax() == 2


def test_fewer_than_three_classes_cannot_be_compared() -> None:
    assert studentized(np.array([[1.0, 5.0]]), [0.0]).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_statistics_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="must be finite"):
        studentized(np.array([[1.0, value, 2.0, 3.0]]), [0.1])


def test_max_t_counts_the_sets_of_the_reference_that_are_at_least_as_extreme() -> None:
    rng = np.random.default_rng(1)
    null, classes = rng.normal(size=99).round(1), rng.normal(size=10).round(1)
    expected = [(1 + sum(m >= t for m in null.tolist())) / 100 for t in classes.tolist()]
    assert max_t(classes, null, -np.inf).tolist() == expected
    # A tie counts against the class.
    assert max_t(np.array([8.0]), np.array([8.0, 1.0])).tolist() == [2 / 3]


def test_a_statistic_below_the_least_is_no_difference_in_the_set_and_in_the_reference() -> None:
    assert LEAST == 5.0
    p = max_t(np.array([4.9, 5.0, 7.0]), np.array([0.5, 4.9, 5.0, 9.0]))
    assert p.tolist() == [1.0, 3 / 5, 2 / 5]


@pytest.mark.parametrize("tails", ["normal", "heavy"])
def test_a_clean_set_has_an_alarm_with_probability_at_most_alpha(tails: str) -> None:
    """Simulated sets with dependent filters and, in one case, heavy tails. With N = 19 and alpha =
    0.05, the scanned set must be the most extreme of 20, so the probability is 0.05."""
    rng = np.random.default_rng(2)

    def maximum() -> float:
        shared = rng.normal(size=(1, 10))
        own = rng.normal(size=(4, 10)) if tails == "normal" else rng.standard_t(2, size=(4, 10))
        return float(studentized(shared + own, [0.1] * 4).max())

    sets = 300
    p = [max_t(np.array([maximum()]), np.array([maximum() for _ in range(19)]), -np.inf)[0]
         for _ in range(sets)]  # fmt: skip
    for level in (0.05, 0.25, 0.5, 0.75):
        count = sum(value <= level + 1e-9 for value in p)
        low, high = binom.ppf([0.0005, 0.9995], sets, level)
        assert low <= count <= high, level


def test_an_alpha_below_the_smallest_possible_p_value_is_refused() -> None:
    check_alpha(0.01, 99)
    with pytest.raises(ConfigError, match=r"1 / \(N \+ 1\) = 0.01 for a reference of N = 99"):
        check_alpha(0.009, 99)
