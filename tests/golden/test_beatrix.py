"""Beatrix equals the published formulas, computed with NumPy entry by entry.

Ma et al., NDSS 2023, and the authors' Beatrix.py. Their own functions were run once on the same
kind of arrays: deviations, thresholds and kernel statistic agreed to 1e-12.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from backdoor_lab.core.types import Features
from backdoor_lab.defenses.base import DefenderKnowledge
from backdoor_lab.defenses.beatrix import Beatrix
from backdoor_lab.defenses.options import FilterOptions
from backdoor_lab.numerics.gram_ranges import Ranges, fold_threshold
from backdoor_lab.numerics.two_samples import anomaly_index, kernel_distance
from tests.helpers.contexts import context
from tests.helpers.mutations import Mutation

RANGES = "numerics/gram_ranges.py"
SAMPLES = "numerics/two_samples.py"
FILTER = "defenses/beatrix.py"
MUTATIONS = [
    Mutation(RANGES, "gram.sign() * gram.abs()", "gram.abs()", "the root has no sign"),
    Mutation(RANGES, "power = maps**p", "power = maps", "every order uses the first power"),
    Mutation(RANGES, "** (1 / p)", "** (1 / 1)", "no root is taken"),
    Mutation(RANGES, "low.append(median - reach)", "low.append(median)",
             "the lower bound is the median"),
    Mutation(RANGES, "(low + ADDED).abs()", "(high + ADDED).abs()",
             "deviations are relative to the wrong bound"),
    Mutation(RANGES, "** 2 / 2) / len(self.low)", "** 2 / 2)", "orders are summed, not averaged"),
    Mutation(RANGES, "of(clean[~inside]", "of(clean", "a fold is compared with itself"),
    Mutation(RANGES, "int(len(ordered) * share)", "int(len(ordered) * share) - 1",
             "the threshold is one rank too low"),
    Mutation(SAMPLES, "-2 * squares", "-4 * squares", "the kernel bandwidth is wrong"),
    Mutation(SAMPLES, "(within - 2 * across)", "(within - across)",
             "the cross term is counted once"),
    Mutation(SAMPLES, "quantile(0.5)).abs()", "quantile(0.5))", "the anomaly index is one-sided"),
    Mutation(FILTER, "layer: str = LAST_STAGE_INPUT", 'layer: str = "penultimate"',
             "the default layer is penultimate"),
    Mutation(FILTER, "(self.predicted, clean.labels)", "(clean.labels, clean.labels)",
             "clean images keep their labels"),
    Mutation(FILTER, "width: float = 10.0", "width: float = 5.0", "ranges are half as wide"),
    Mutation(FILTER, "percentile: float = 95.0", "percentile: float = 60.0",
             "the percentile is lower"),
]  # fmt: skip

CHANNELS, SIDE = 4, 3


def lower_median(values: np.ndarray) -> np.ndarray:
    """The median along the first axis. For an even number of values, the lower of the middle
    two."""
    found: np.ndarray = np.sort(values, axis=0)[(len(values) - 1) // 2]
    return found


def gram(maps: np.ndarray, p: int) -> np.ndarray:
    """The Gram matrices (n, C, C): signed p-th roots of the sums of v_i^p v_j^p, with zeros below
    the diagonal."""
    found = np.zeros((len(maps), maps.shape[1], maps.shape[1]))
    for n, image in enumerate(maps):
        for i in range(maps.shape[1]):
            for j in range(i, maps.shape[1]):
                total = float((image[i] ** p * image[j] ** p).sum())
                found[n, i, j] = np.sign(total) * abs(total) ** (1 / p)
    return found


def deviations(clean: np.ndarray, maps: np.ndarray, orders: int, width: float) -> np.ndarray:
    total = np.zeros(len(maps))
    for p in range(1, orders + 1):
        reference, seen = gram(clean, p), gram(maps, p)
        median = lower_median(reference)
        mad = lower_median(np.abs(reference - median))
        low, high = median - width * mad, median + width * mad
        below = np.maximum(low - seen, 0) / np.abs(low + 1e-6)
        above = np.maximum(seen - high, 0) / np.abs(high + 1e-6)
        total += (below + above).sum(axis=(1, 2))
    return total / (maps.shape[1] ** 2 / 2) / orders


def threshold(clean: np.ndarray, orders: int, width: float, share: float) -> float:
    """The percentile of the deviations of all images in five folds. The folds are runs of
    consecutive images, and each is compared with the other images."""
    size, found = len(clean) // 5, []
    for fold in range(5):
        inside = list(range(fold * size, (fold + 1) * size))
        rest = np.delete(clean, inside, axis=0)
        found += deviations(rest, clean[inside], orders, width).tolist()
    return float(sorted(found)[int(len(found) * share)])


def kernel_statistic(first: np.ndarray, second: np.ndarray) -> float:
    """The statistic for a sum of two Gaussian kernels, whose bandwidths are the median squared
    distance and half of it."""
    both = np.concatenate([first, second])
    squares = ((both[:, None] - both[None]) ** 2).sum(axis=2)
    median = np.sort(squares.ravel())[(squares.size - 1) // 2]
    kernel = np.exp(-squares / (median / 2)) + np.exp(-squares / median)
    m, n = len(first), len(second)
    parts = kernel[:m, :m].mean() + kernel[m:, m:].mean() - 2 * kernel[:m, m:].mean()
    return float(m * n / (m + n) * parts)


def index(values: list[float], added: float) -> np.ndarray:
    distance = np.abs(np.array(values) - np.median(values))
    found: np.ndarray = distance / 1.4826 / (np.median(distance) + added)
    return found


def maps(n: int, seed: int) -> np.ndarray:
    """Features of both signs. In the last two images, channels 0 and 1 have equal signs."""
    values = np.random.default_rng(seed).normal(size=(n, CHANNELS, SIDE * SIDE)) + 0.3
    values[-2:, 1] = 4 * values[-2:, 0]
    return values


@pytest.mark.parametrize(("orders", "width"), [(1, 1.0), (8, 1.0), (8, 10.0), (3, 0.5)])
def test_deviations_match_the_formula(orders: int, width: float) -> None:
    clean, seen = maps(12, 1)[:-2], maps(9, 2)
    expected = deviations(clean, seen, orders, width)
    ranges = Ranges.of(torch.from_numpy(clean), orders, width)
    assert expected.max() > 0
    assert ranges.deviations(torch.from_numpy(seen)).numpy() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("n", [10, 13])
@pytest.mark.parametrize("share", [0.95, 0.99, 0.6])
def test_thresholds_match_the_formula(n: int, share: float) -> None:
    """There are 13 images, of which the last three are in no fold."""
    clean = maps(n, 3)
    expected = threshold(clean, 4, 1.5, share)
    assert expected > 0
    assert fold_threshold(torch.from_numpy(clean), 4, 1.5, share) == pytest.approx(expected)


@pytest.mark.parametrize(("m", "n"), [(12, 5), (8, 9), (3, 1)])
def test_the_kernel_statistic_matches_the_formula(m: int, n: int) -> None:
    rng = np.random.default_rng(4)
    first, second = rng.normal(size=(m, 3)), rng.normal(size=(n, 3)) + 1
    found = kernel_distance(torch.from_numpy(first), torch.from_numpy(second))
    assert found == pytest.approx(kernel_statistic(first, second), rel=1e-9)


def test_the_anomaly_index_matches_the_formula() -> None:
    values = [0.1, 3.0, 0.4, 0.2, 0.35, 0.25]
    for added in (0.0, 1e-6, 0.5):
        found = anomaly_index(torch.tensor(values, dtype=torch.float64), added)
        assert found.numpy() == pytest.approx(index(values, added))


class Passing(nn.Module):
    """Two convolutions that leave four channels unchanged, except that the first channel is scaled.
    The first value of an image is 100 + its class and decides the prediction."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.first, self.last = (nn.Conv2d(CHANNELS, CHANNELS, 1, bias=False) for _ in range(2))
        self.first.weight.data = torch.eye(CHANNELS)[:, :, None, None] / 64
        self.last.weight.data = -3 * torch.eye(CHANNELS)[:, :, None, None]
        self.head, self.classes = nn.Linear(1, 1), classes

    def forward(self, images: Tensor) -> Tensor:
        self.last(self.first(images.float()))
        classes = torch.arange(self.classes)
        return -(images[:, 0, 0, :1].float() - 100 - classes).abs()


def test_by_default_the_features_are_the_input_of_the_last_stage() -> None:
    """The authors' code hooks the input of layer4 of a ResNet."""
    assert Beatrix().layer == "last_stage_input"


def test_scores_and_the_choice_of_classes_match_a_second_implementation() -> None:
    """NumPy computes everything from the images to J*: the feature maps that enter the second
    convolution, thresholds from five clean images per class, and the statistic of mean features.
    Each of the five folds has one image, so that the order of the clean images does not matter."""
    rng, classes = np.random.default_rng(6), 4
    images = rng.integers(90, 160, (48, CHANNELS, SIDE, SIDE), dtype=np.uint8)
    clean = rng.integers(90, 160, (20, CHANNELS, SIDE, SIDE), dtype=np.uint8)
    labels, aside = np.arange(48) % classes, np.arange(20) % classes
    clean[:, 0, 0, 0] = 100 + aside
    wrong, aside = aside, aside.copy()
    # A clean image belongs to the class that the network predicts, whatever its label.
    wrong[:8] = (wrong[:8] + 1) % classes
    for y in range(classes):
        images[np.flatnonzero(labels == y)[: 2 + y], :, y % SIDE :] = 255
    given = context(
        torch.from_numpy(images), torch.from_numpy(labels), network=Passing(classes),
        clean=(torch.from_numpy(clean), torch.from_numpy(wrong)), classes=classes,
    )  # fmt: skip
    known = DefenderKnowledge(given.classes, None, None, 0, context=given)
    options = FilterOptions(filter_scope="suspicious", removal_budget="auto")
    features = Features(torch.zeros(48, 1), torch.from_numpy(labels))
    members = {y: torch.from_numpy(np.flatnonzero(labels == y)) for y in range(classes)}
    found: Any = Beatrix(options).score_classes(features, members, range(classes), known)
    seen, reference = ((each.astype(np.float64).reshape(len(each), CHANNELS, -1)) / 64
                       for each in (images, clean))  # fmt: skip
    statistics = []
    for y in range(classes):
        of_class, of_clean = seen[labels == y], reference[aside == y]
        expected = deviations(of_clean, of_class, 8, 10.0)
        limit = threshold(of_clean, 8, 10.0, 0.95)
        assert found[y].scores.numpy() == pytest.approx(expected, rel=1e-5)
        assert found[y].notes["threshold"] == pytest.approx(limit, rel=1e-5)
        beyond = expected > limit
        pooled = of_class.mean(axis=2)
        both = beyond.any() and not beyond.all()
        statistics.append(kernel_statistic(pooled[~beyond], pooled[beyond]) if both else 0.0)
    stars = [found[y].suspicion for y in range(classes)]
    assert max(statistics) > 0
    assert stars == pytest.approx(index(statistics, 1e-6), rel=1e-4)
