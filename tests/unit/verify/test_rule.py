"""The rule by which a claimed rate holds."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backdoor_lab.analysis.intervals import newcombe
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.verify.rule import TOLERANCE, Claim, Count, judge


@pytest.mark.parametrize(("hits", "holds"), [(97, False), (98, True), (102, True), (103, False)])
def test_on_the_same_test_set_two_images_may_differ(hits: int, holds: bool) -> None:
    found = judge("nat", Claim(0.5, 200), Count(hits, 200), same=True)
    assert found.holds is holds
    assert found.difference == 100 - hits
    assert found.beyond == (0 if holds else 1)


def test_the_number_of_images_of_a_claim_is_not_needed_on_the_same_test_set() -> None:
    assert judge("nat", Claim(0.5), Count(100, 200), same=True).holds


@pytest.mark.parametrize(("hits", "holds"), [(36, False), (37, True), (63, True), (64, False)])
def test_on_another_test_set_zero_lies_in_newcombes_interval(hits: int, holds: bool) -> None:
    """50 of 100 against `hits` of 100."""
    found = judge("asr", Claim(0.5, 100), Count(hits, 100), same=False)
    assert found.holds is holds
    assert (found.low, found.high) == newcombe(0.5, 100, hits / 100, 100)
    assert found.difference == pytest.approx(0.5 - hits / 100)
    assert found.beyond == pytest.approx(0 if holds else 0.00295, abs=1e-5)


def test_a_small_test_set_refutes_less_than_a_large_one() -> None:
    assert judge("nat", Claim(0.95, 20), Count(17, 20), same=False).holds
    assert not judge("nat", Claim(0.95, 2000), Count(1700, 2000), same=False).holds


def test_on_another_test_set_a_claim_without_the_number_of_images_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"`claims.asr.n`, the number of images .* is missing"):
        judge("asr", Claim(0.5), Count(1, 2), same=False)


def test_the_words_say_by_how_much_a_claim_is_false() -> None:
    said = judge("nat", Claim(0.91, 100), Count(80, 100), same=True).words()
    assert said == "11 images more than measured, at most 2 are allowed"
    said = judge("nat", Claim(0.64, 100), Count(50, 100), same=False).words()
    assert said == "+14.00 points, 95 % interval +0.29 to +26.99 misses 0 by 0.29"


COUNTS = st.integers(1, 20_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(COUNTS, st.integers(-5, 5))
def test_a_claim_holds_on_its_test_set_if_and_only_if_two_images_differ_at_most(
    count: tuple[int, int], off: int
) -> None:
    hits, n = count
    claimed = min(max(hits + off, 0), n)
    found = judge("nat", Claim(claimed / n, n), Count(hits, n), same=True)
    assert found.difference == claimed - hits
    assert found.holds is (abs(claimed - hits) <= TOLERANCE)


@given(COUNTS, COUNTS)
def test_on_another_test_set_the_verdict_does_not_depend_on_which_count_is_the_claim(
    one: tuple[int, int], other: tuple[int, int]
) -> None:
    (a, n), (b, m) = one, other
    found = judge("nat", Claim(a / n, n), Count(b, m), same=False)
    swapped = judge("nat", Claim(b / m, m), Count(a, n), same=False)
    assert found.holds is swapped.holds
    assert math.isclose(found.beyond, swapped.beyond, abs_tol=1e-12)
    assert found.low <= found.difference + 1e-12
    assert found.high >= found.difference - 1e-12


@given(COUNTS)
def test_an_equal_rate_always_holds(count: tuple[int, int]) -> None:
    hits, n = count
    for same in (True, False):
        assert judge("asr", Claim(hits / n, n), Count(hits, n), same=same).holds
