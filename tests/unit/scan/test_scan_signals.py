"""Signals that the images of a group share beyond their peers: known values and invariances."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.stats import binom

from backdoor_lab.scan import statistics
from backdoor_lab.scan.signals import (
    LARGEST,
    LOW,
    Peers,
    codes_of,
    frequencies_of,
    peers_of,
    repeated_value,
    shared_frequency,
)
from tests.helpers.scanning import EACH, POISONED, arrays, found_of, pixels


def peers(rows: np.ndarray, smoothing: float = 0.0) -> Peers:
    """Peers that count equally."""
    return Peers(rows, np.full(len(rows), 1 / len(rows)), smoothing)


def test_peers_are_taken_for_the_same_classes_in_the_same_proportions() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2])
    predicted = np.array([1, 1, 1, 2, 1, 1, 1, 1, 0, 2, 2])
    found = peers_of(np.arange(4), labels, predicted)
    assert found is not None
    # Row 8 is of class 1, but is taken for class 0.
    assert found.rows.tolist() == [4, 5, 6, 7, 9, 10]
    assert found.weights.tolist() == pytest.approx([3 / 16] * 4 + [1 / 8] * 2)
    assert found.smoothing == pytest.approx(3 / 16 + 1 / 8)


def test_classes_without_peers_are_left_out() -> None:
    labels, predicted = np.array([0, 0, 0, 1]), np.array([1, 1, 2, 1])
    found = peers_of(np.arange(3), labels, predicted)
    assert found is not None
    assert (found.rows.tolist(), found.weights.tolist()) == ([3], [1.0])
    assert found.smoothing == 1.0
    assert peers_of(np.array([2]), labels, predicted) is None


def test_a_repeated_value_has_the_binomial_tail_of_its_count() -> None:
    codes = np.arange(40 * 3).reshape(40, 3)
    codes[:6, 1] = 7
    codes[[12, 30, 31], 1] = 7
    group = np.arange(10)
    strength, shown = repeated_value(codes, np.arange(20), group, peers(np.arange(20, 40), 0.05))
    # 6 images of 10 have the color, 2 of the 20 peers do.
    assert strength == pytest.approx(-np.log10(binom.sf(5, 10, 2 / 20 + 0.05)))
    assert np.flatnonzero(shown).tolist() == [0, 1, 2, 3, 4, 5, 12]
    assert set(shown) == {0.0, 1.0}


def test_a_value_that_all_peers_have_is_no_signal() -> None:
    codes = np.zeros((40, 3), np.int64)
    strength, _ = repeated_value(codes, np.arange(20), np.arange(10), peers(np.arange(20, 40), 0.1))
    assert strength == 0.0


def test_a_value_that_three_images_have_is_not_examined() -> None:
    codes = np.arange(120).reshape(40, 3)
    codes[:3, 0] = 1000
    strength, shown = repeated_value(codes, np.arange(20), np.arange(10), peers(np.arange(20, 40)))
    assert (strength, shown.sum()) == (0.0, 0.0)


def test_the_strength_of_a_repeated_value_is_finite() -> None:
    codes = np.arange(1200).reshape(1200, 1)
    codes[:600] = 5000
    group = np.arange(600)
    strength, _ = repeated_value(codes, group, group, peers(np.arange(600, 1200), 1e-3))
    assert strength == LARGEST


def test_a_shared_frequency_is_the_largest_difference_in_standard_errors_of_the_peers() -> None:
    rng = np.random.default_rng(0)
    frequencies = rng.normal(size=(300, 6)).astype(np.float32)
    group, others = np.arange(24), np.arange(100, 300)
    frequencies[group, 4] += 3
    frequencies[30:40, 4] += 3
    of_class = np.arange(100)
    strength, shown = shared_frequency(frequencies, of_class, group, peers(others))
    theirs, ours = frequencies[others].astype(float), frequencies[group].astype(float)
    # The three smallest and the three largest of 24 values are left out.
    middle = np.sort(ours, axis=0)[3:-3].mean(axis=0)
    z = (middle - theirs.mean(axis=0)) / (theirs.std(axis=0) / 24**0.5)
    assert strength == pytest.approx(np.abs(z).max(), rel=1e-5)
    assert np.abs(z).argmax() == 4
    # Only this frequency differs by at least half as much: an image's value is its own z score.
    own = (frequencies[of_class, 4] - theirs[:, 4].mean()) / theirs[:, 4].std()
    np.testing.assert_allclose(shown, own, rtol=1e-4, atol=1e-5)
    assert min(shown[:24].mean(), shown[30:40].mean()) > 2


def test_one_extreme_image_makes_no_shared_frequency() -> None:
    rng = np.random.default_rng(0)
    frequencies = rng.normal(size=(300, 6)).astype(np.float32)
    group, of_class, others = np.arange(24), np.arange(100), peers(np.arange(100, 300))
    before, _ = shared_frequency(frequencies, of_class, group, others)
    frequencies[5, 2] = 1000.0
    after, _ = shared_frequency(frequencies, of_class, group, others)
    assert after < before + 1


def test_images_without_any_difference_share_no_frequency() -> None:
    frequencies = np.zeros((40, 6), np.float32)
    found = shared_frequency(frequencies, np.arange(20), np.arange(10), peers(np.arange(20, 40)))
    assert found[0] == 0.0
    assert found[1].tolist() == [0.0] * 20


def test_weights_of_peers_count() -> None:
    """A peer of weight 3/4 counts as three peers of weight 1/4 do."""
    rng = np.random.default_rng(1)
    frequencies = rng.normal(size=(40, 5)).astype(np.float32)
    group, of_class = np.arange(10), np.arange(20)
    once = Peers(np.array([20, 21]), np.array([0.75, 0.25]), 0.0)
    repeated = peers(np.array([20, 20, 20, 21]))
    for one, other in zip(
        shared_frequency(frequencies, of_class, group, once),
        shared_frequency(frequencies, of_class, group, repeated), strict=True,
    ):  # fmt: skip
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_colors_are_equal_only_if_all_channels_are() -> None:
    images = np.zeros((3, 3, 1, 2), np.uint8)
    images[0, :, 0, 0] = (1, 2, 3)
    images[1, :, 0, 0] = (3, 2, 1)
    images[2, :, 0, 0] = (1, 2, 3)
    codes = codes_of(images)
    assert codes.shape == (3, 2)
    assert codes[:, 0].tolist() == [0x030201, 0x010203, 0x030201]


def test_frequencies_keep_the_length_of_an_image_and_those_above_the_limit_are_left_out() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (300, 3, 8, 8), dtype=np.uint8)
    found = frequencies_of(images)
    assert (found.shape, found.dtype) == ((300, 192), np.float32)
    squares = images.astype(float) ** 2
    np.testing.assert_allclose((found**2).sum(axis=1), squares.sum(axis=(1, 2, 3)), rtol=1e-5)
    # The first frequency of a channel is its sum divided by the square root of 64.
    np.testing.assert_allclose(found[:, 64], images[:, 1].sum(axis=(1, 2)) / 8.0, rtol=1e-5)
    assert frequencies_of(np.zeros((2, 1, 100, 70), np.uint8)).shape == (2, LOW * LOW)


def test_the_signals_of_the_poisoned_class_are_strong_and_its_images_show_them() -> None:
    """Each doubling of the poison strengthens the repeated value; without poison, there is no
    group of images that are taken for another class."""
    strengths = []
    for poisoned in (0, POISONED, 2 * POISONED):
        found = found_of(*arrays(poisoned=poisoned))
        shown = pixels(None, found.training_set())
        whole = statistics.set_of(found, shown)
        values, scores = whole.signals(2, 0)
        strengths.append(values[0])
        if poisoned:
            assert sorted(np.argsort(-scores[0])[:poisoned].tolist()) == list(range(poisoned))
        assert values.shape == (len(statistics.FILTERS),)
        assert scores.shape == (len(statistics.FILTERS), EACH)
    assert strengths[0] == 0.0
    assert all(b > a + 3 for a, b in pairwise(strengths))


def test_scores_of_equal_signals_are_ordered_by_unusual_features() -> None:
    found = found_of(*arrays())
    shown = pixels(None, found.training_set())
    whole = statistics.set_of(found, shown)
    _, scores = whole.signals(2, 0)
    assert len(np.unique(scores[0])) == EACH
    of_class = shown.values["middle"][found.labeled.labels == 2]
    known = statistics.DefenderKnowledge(found.classes, None, None, 0)
    unusual = statistics.spectre().score_class(of_class, 2, known).scores
    poisoned = scores[0][:POISONED]
    expected = torch.argsort(unusual[:POISONED], stable=True).numpy()
    assert np.argsort(poisoned, kind="stable").tolist() == expected.tolist()
