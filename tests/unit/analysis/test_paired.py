"""Paired statistics, compared with SciPy, brute force, and values computed by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from backdoor_lab.analysis.paired import holm, paired, sign_test, wilcoxon

RNG = np.random.default_rng(7)
SAMPLES = [RNG.normal(shift, 1, n).round(6).tolist()
           for n in (2, 3, 4, 5, 8, 13, 20, 50) for shift in (0, 0.7, 3)]  # fmt: skip


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda s: f"{len(s)}-{s[0]:.2f}")
def test_t_test_and_interval_agree_with_scipy(sample: list[float]) -> None:
    found = paired(sample)
    theirs = stats.ttest_1samp(sample, 0.0)
    assert found.t == pytest.approx(theirs.pvalue, rel=1e-6)
    low, high = theirs.confidence_interval(0.95)
    assert found.half is not None
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx((low, high))


def test_t_test_of_differences_equals_ttest_rel_of_scipy() -> None:
    ours, base = RNG.normal(0, 1, 6), RNG.normal(0.5, 1, 6)
    found = paired((ours - base).tolist())
    assert found.t == pytest.approx(stats.ttest_rel(ours, base).pvalue)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda s: f"{len(s)}-{s[0]:.2f}")
def test_sign_and_wilcoxon_tests_agree_with_scipy(sample: list[float]) -> None:
    positive = sum(d > 0 for d in sample)
    assert sign_test(sample) == pytest.approx(stats.binomtest(positive, len(sample)).pvalue)
    theirs = stats.wilcoxon(sample, method="exact").pvalue
    assert wilcoxon(sample) == pytest.approx(theirs)


@pytest.mark.parametrize(
    "sample", [[1, 1, 1], [1, -1, 2, 2], [0, 0, 3, -1, 1], [2, 2, -2, 5, 0, -7, 7], [-3, -3, -4]]
)
def test_exact_tests_with_ties_and_zeros_agree_with_brute_force(sample: list[float]) -> None:
    left = [d for d in sample if d]
    ranks = stats.rankdata(np.abs(left))
    seen = sum(r for r, d in zip(ranks, left, strict=True) if d > 0)
    middle = ranks.sum() / 2
    sums = [sum(itertools.compress(ranks, signs))
            for signs in itertools.product((0, 1), repeat=len(left))]  # fmt: skip
    extreme = np.mean([abs(total - middle) >= abs(seen - middle) - 1e-9 for total in sums])
    assert wilcoxon(sample) == pytest.approx(extreme)
    heads = [sum(signs) for signs in itertools.product((0, 1), repeat=len(left))]
    positive, half = sum(d > 0 for d in left), len(left) / 2
    assert sign_test(sample) == pytest.approx(
        np.mean([abs(k - half) >= abs(positive - half) for k in heads])
    )


def test_paired_statistics_match_values_computed_by_hand() -> None:
    # Differences 1, 2, 3 have mean 2 and standard deviation 1, so t = 2 sqrt(3). With two degrees
    # of freedom, P(|T| > t) = 1 - t / sqrt(t^2 + 2) = 1 - sqrt(12 / 14).
    found = paired([1.0, 2.0, 3.0])
    assert (found.n, found.mean) == (3, 2.0)
    assert found.t == pytest.approx(1 - math.sqrt(12 / 14))
    assert found.half == pytest.approx(4.302652729911275 / math.sqrt(3))
    assert found.sign == found.wilcoxon == pytest.approx(2 / 8)


def test_a_single_pair_has_a_difference_but_no_p_value() -> None:
    found = paired([-3.5])
    assert (found.n, found.mean, found.constant) == (1, -3.5, False)
    assert [found.half, found.t, found.sign, found.wilcoxon] == [None] * 4


@pytest.mark.parametrize("value", [0.0, -2.5])
def test_no_t_test_is_computed_if_all_differences_are_equal(value: float) -> None:
    found = paired([value] * 4)
    assert found.constant
    assert (found.mean, found.half, found.t) == (value, 0.0, None)
    assert found.sign == found.wilcoxon == (None if value == 0 else 2 / 16)


def test_exact_tests_are_omitted_for_many_pairs() -> None:
    found = paired(RNG.normal(0, 1, 51).tolist())
    assert found.sign is found.wilcoxon is None
    assert found.t is not None


def test_holm_corrected_p_values_match_a_computation_by_hand_and_are_monotone() -> None:
    # Holm (1979): sorted .005 .01 .03 .04 times 4 3 2 1 is .02 .03 .06 .04, made monotone.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


def test_holm_corrected_p_values_reject_exactly_what_the_step_down_procedure_rejects() -> None:
    for _ in range(50):
        values = RNG.random(9) ** 4
        rejected = set()
        for rank, position in enumerate(np.argsort(values)):
            if values[position] > 0.05 / (len(values) - rank):
                break
            rejected.add(int(position))
        assert {n for n, p in enumerate(holm(values.tolist())) if p <= 0.05} == rejected
