"""The numbers behind figures, compared with independent computations."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from backdoor_lab.analysis.evidence import (
    cut_of,
    histogram,
    picks,
    projections,
    recorded_curve,
    removal_curve,
    sampled,
    thinned,
)


def draw(seed: int, n: int = 200) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores with a few NaN, the poison mask, and a keep mask that removes the 30 highest."""
    generator = np.random.default_rng(seed)
    poison = generator.random(n) < 0.2
    scores = generator.normal(size=n) + poison
    scores[generator.random(n) < 0.1] = np.nan
    keep = np.ones(n, bool)
    keep[np.argsort(-np.nan_to_num(scores, nan=-9))[:30]] = False
    return scores, poison, keep


@pytest.mark.parametrize("wide", [False, True])
def test_every_scored_example_is_in_exactly_one_histogram_bin(wide: bool) -> None:
    scores, poison, keep = draw(0)
    scores = np.exp(4 * scores) if wide else scores
    bars = histogram(scores, poison, keep, bins=17)
    assert bars is not None
    assert bars.log is wide
    assert len(bars.edges) == 18
    widths = np.diff(np.log(bars.edges) if wide else bars.edges)
    np.testing.assert_allclose(widths, widths[0])
    for counts, kind in ((bars.clean, False), (bars.poison, True)):
        values = scores[np.isfinite(scores) & (poison == kind)]
        expected = [
            np.sum((values >= low if n else values > -np.inf)
                   & (values < high if n < 16 else values < np.inf))
            for n, (low, high) in enumerate(itertools.pairwise(bars.edges))
        ]  # fmt: skip
        np.testing.assert_array_equal(counts, expected)
        assert counts.sum() == len(values)


def test_a_histogram_needs_scores_but_the_scores_may_all_be_equal() -> None:
    nothing, some = np.full(4, np.nan), np.full(4, 2.0)
    poison, keep = np.array([0, 0, 1, 1], bool), np.ones(4, bool)
    assert histogram(nothing, poison, keep) is None
    bars = histogram(some, poison, keep)
    assert bars is not None
    assert (bars.clean.sum(), bars.poison.sum(), bars.cut) == (2, 2, None)


@pytest.mark.parametrize("seed", range(5))
def test_the_score_threshold_separates_removed_from_kept_examples(seed: int) -> None:
    scores, _, keep = draw(seed)
    cut = cut_of(scores, keep)
    assert cut is not None
    seen = np.isfinite(scores)
    np.testing.assert_array_equal(scores[seen] > cut, ~keep[seen])


def test_a_removal_that_does_not_follow_the_scores_has_no_threshold() -> None:
    scores = np.array([1.0, 2.0, 3.0])
    assert cut_of(scores, np.array([True, False, True])) is None
    assert cut_of(scores, np.ones(3, bool)) is None
    assert cut_of(scores, np.zeros(3, bool)) is None
    assert cut_of(np.array([1.0, 2.0, 2.0]), np.array([True, True, False])) == 2.0


@pytest.mark.parametrize(
    ("n", "d"), [(50, 6), (6, 50), (7, 7), (5, 1), (300, 90), (90, 300), (80, 80)]
)
def test_projections_equal_those_of_the_svd(n: int, d: int) -> None:
    values = np.random.default_rng(n).normal(size=(n, d)) * 3 + 1
    found = projections(values)
    u, s, vt = np.linalg.svd(values - values.mean(axis=0), full_matrices=False)
    for axis in range(min(2, d)):
        expected = u[:, axis] * s[axis]
        sign = np.sign(found[:, axis] @ expected)
        np.testing.assert_allclose(found[:, axis], sign * expected, atol=1e-9)
        largest = np.abs(vt[axis]).argmax()
        assert sign * vt[axis, largest] > 0
    if d == 1:
        assert not found[:, 1].any()


@pytest.mark.parametrize("seed", range(4))
def test_the_removal_curve_counts_the_poison_left_after_each_removal(seed: int) -> None:
    scores, poison, keep = draw(seed)
    curve = removal_curve(scores, poison)
    assert curve is not None
    order = np.argsort(-np.nan_to_num(scores, nan=-np.inf), kind="stable")
    order = order[: np.isfinite(scores).sum()]
    for k in range(len(order) + 1):
        assert curve.removed[k] == k
        assert curve.left[k] == poison.sum() - poison[order[:k]].sum()
    assert curve.left[30] == (poison & keep).sum()
    assert curve.scored == poison[np.isfinite(scores)].sum()


def test_the_removal_curve_averages_over_random_orders_of_tied_scores() -> None:
    scores = np.array([2.0, 1.0, 1.0, 1.0, 0.0])
    poison = np.array([0, 1, 1, 0, 1], bool)
    curve = removal_curve(scores, poison)
    assert curve is not None
    orders = [(0, *middle, 4) for middle in itertools.permutations((1, 2, 3))]
    for k in range(6):
        expected = np.mean([poison.sum() - poison[list(order[:k])].sum() for order in orders])
        assert curve.left[k] == pytest.approx(expected)


def test_the_chance_line_is_the_mean_over_random_removal_orders() -> None:
    scores, poison, _ = draw(1)
    curve = removal_curve(scores, poison)
    assert curve is not None
    seen = np.flatnonzero(np.isfinite(scores))
    generator = np.random.default_rng(0)
    k = 60
    left = [poison.sum() - poison[generator.permutation(seen)[:k]].sum() for _ in range(4000)]
    (start, end), (most, least) = curve.by_chance
    assert np.interp(k, [start, end], [most, least]) == pytest.approx(np.mean(left), abs=0.15)


def test_without_scores_or_poison_there_is_no_removal_curve() -> None:
    scores, poison, _ = draw(0)
    assert removal_curve(np.full(200, np.nan), poison) is None
    assert removal_curve(scores, np.zeros(200, bool)) is None


def test_a_thinned_removal_curve_keeps_its_end_points_and_the_requested_point() -> None:
    scores, poison, _ = draw(0, 5000)
    curve = removal_curve(scores, poison)
    assert curve is not None
    thin = thinned(curve, 50, keep=1234)
    assert len(thin.removed) <= 51
    assert {0, 1234, len(curve.removed) - 1} <= set(thin.removed.tolist())
    np.testing.assert_array_equal(thin.left, curve.left[thin.removed])
    assert thinned(curve, 10**6) is curve


@pytest.mark.parametrize(
    "odd",
    [
        None, {}, [], {"removed": [0, 1], "left": [3]}, {"removed": [0], "left": [3]},
        {"removed": [1, 2], "left": [3, 2]}, {"removed": [0, 0], "left": [3, 2]},
        {"removed": [0, 1], "left": [2, 3]}, {"removed": [0, 1], "left": [3, -1]},
        {"removed": [0, 1], "left": [float("nan"), 1]}, {"removed": "01", "left": [3, 2]},
        {"removed": [0, 10**30], "left": [3, 2]}, {"removed": [[0, 1]], "left": [[3, 2]]},
    ],
)  # fmt: skip
def test_a_malformed_removal_curve_in_a_record_is_ignored(odd: object) -> None:
    counts = {"n_removed": 1, "pois_left": 2}
    assert recorded_curve({"counts": counts, "detection": {"curve": odd}}) is None
    sound = {"removed": [0, 1, 5], "left": [3, 2.5, 1]}
    found = recorded_curve({"counts": counts, "detection": {"curve": sound}})
    assert found is not None
    assert (found[0].total, found[0].scored, found[1]) == (3, 2, (1, 2))
    assert recorded_curve({"counts": None, "detection": {"curve": sound}}) is None


def test_the_marked_point_of_a_recorded_removal_curve_excludes_cover_images() -> None:
    """Covers count as removed but are not part of the curve. Of 9 removed images, 4 are covers."""
    counts = {"n_removed": 9, "pois_left": 1, "n_covers": 6, "covers_left": 2}
    sound = {"removed": [0, 1, 5, 9], "left": [3, 2.5, 1, 0]}
    found = recorded_curve({"counts": counts, "detection": {"curve": sound}})
    assert found is not None
    assert found[1] == (5, 1)


def test_example_images_are_those_with_the_highest_scores_of_each_group() -> None:
    scores, poison, keep = draw(3)
    cover = np.zeros(200, bool)
    cover[np.flatnonzero(~poison)[:5]] = True
    found = picks(scores, keep, poison, cover, 4)
    for members, mask in (
        (found.removed, ~keep & poison),
        (found.mistaken, ~keep & ~poison & ~cover),
        (found.missed, keep & poison),
    ):
        best = sorted(np.nan_to_num(scores[mask], nan=-np.inf), reverse=True)[:4]
        assert mask[members].all()
        assert list(np.nan_to_num(scores[members], nan=-np.inf)) == best


def test_sampled_indices_are_evenly_spread_and_reproducible() -> None:
    where = np.arange(1000) * 3
    found = sampled(where, 11)
    assert len(found) == 11
    assert (found[0], found[-1]) == (0, 2997)
    assert np.ptp(np.diff(found)) <= 3
    assert sampled(where, 5000) is where
