"""STRIP's entropies and threshold, compared with NumPy and SciPy code written from the paper and
the authors' notebook."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from backdoor_lab.core import streams
from backdoor_lab.defenses.strip import STRIP, drawn
from tests.helpers.contexts import Small, context, hidden
from tests.helpers.mutations import Mutation

FILE = "defenses/strip.py"
MUTATIONS = [
    Mutation(FILE, "-(logs.exp() * logs)", "(logs.exp() * logs)",
             "the entropy has the opposite sign"),
    Mutation(FILE, "SampleScores(-found,", "SampleScores(found,",
             "the score has the opposite sign"),
    Mutation(
        FILE,
        "return images[at // count].float() + weight * pool[flat[start:stop]].float()",
        "return (images[at // count].float() + weight * pool[flat[start:stop]]).clamp(0, 255)",
        "the sum is clipped",
    ),
    Mutation(
        FILE, "drawn(context, each, len(pool)", "drawn(context, images[0].cpu(), len(pool)",
        "all images have the same overlays",
    ),
    Mutation(FILE, "std(unbiased=False)", "std(unbiased=True)",
             "the standard deviation is unbiased"),
    Mutation(FILE, "torch.tensor(2.0).double().log()", "1.0", "the entropy is in nats, not bits"),
]  # fmt: skip
N = 9


def noise(n: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 2, 3, 3), generator=generator, dtype=torch.uint8)


def probabilities(network: Small, images: np.ndarray) -> np.ndarray:
    """The network's softmax outputs, computed with NumPy. Images are float (n, C, H, W) with gray
    levels from 0 to 255."""
    first, norm, _, last = network.body
    w1, b1, mean, variance, w2, b2 = (
        each.detach().double().numpy()
        for each in (first.weight, first.bias, norm.running_mean, norm.running_var,
                     last.weight, last.bias)
    )  # fmt: skip
    inner = images.reshape(len(images), -1) / 255 @ w1.T + b1
    z = np.maximum((inner - mean) / np.sqrt(variance + norm.eps), 0) @ w2.T + b2
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def entropy_of(network: Small, image: Tensor, overlays: Tensor) -> float:
    """The entropy -Σ p log2 p of the prediction for the sum of image and overlay, averaged over the
    overlays. Sums are not clipped."""
    mixed = image.double().numpy()[None] + overlays.double().numpy()
    p = probabilities(network, mixed)
    return float(-np.nansum(p * np.log2(p)) / len(overlays))


def test_scores_and_threshold_follow_the_paper() -> None:
    """The false rejection rate is 1 %. The threshold is therefore the 0.01 quantile of a normal
    distribution fitted to the entropies of clean images."""
    images, clean = noise(40, 1), noise(30, 2)
    network = hidden(18, 4, seed=3)
    with torch.no_grad():
        network.body[3].weight.mul_(4)
    given = context(images, torch.arange(40) % 4, network=network, clean=(clean, torch.arange(30)))
    order = torch.randperm(30, generator=given.generator(streams.OVERLAYS))
    pool, rest = clean[order[:15]], clean[order[15:]]

    def entropies(of: Tensor) -> np.ndarray:
        return np.array([entropy_of(network, x, pool[drawn(given, x, 15, N)]) for x in of])

    usual = entropies(rest)
    mu, sigma = scipy.stats.norm.fit(usual)
    for share in (0.01, 0.3):
        strip = STRIP(n_overlays=N, false_positive_rate=share)
        found = strip.score_images(given, torch.arange(40))
        expected = entropies(images)
        assert found.scores.numpy() == pytest.approx(-expected, rel=1e-5)
        threshold = scipy.stats.norm.ppf(share, loc=mu, scale=sigma)
        assert found.notes["threshold_bits"] == pytest.approx(threshold, rel=1e-5)
        assert found.flagged is not None
        assert found.flagged.tolist() == [not entropy > threshold for entropy in expected]
    assert 0 < int(found.flagged.sum()) < 40


def test_defaults_are_those_of_the_authors() -> None:
    strip = STRIP()
    assert (strip.n_overlays, strip.overlay_weight, strip.false_positive_rate) == (100, 1.0, 0.01)
