"""The smooth trigger by NumPy: noise, the authors' low-pass filter in space, and their range."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.fft import idctn

from backdoor_lab.attacks.low_frequency import LowFrequency
from backdoor_lab.core import streams
from backdoor_lab.core.rng import torch_generator
from tests.helpers.mutations import Mutation

FILE = "attacks/low_frequency.py"
MUTATIONS = [
    Mutation(FILE, "smooth -= smooth.min()", "smooth -= smooth.mean()", "no brightness shift"),
    Mutation(FILE, "smooth.min()", "smooth.amin(dim=(1, 2), keepdim=True)", "a range per channel"),
    Mutation(FILE, "self.sigma * scale(height, width)", "self.sigma", "pixels of the image"),
    Mutation(FILE, "** 2) / 2)", "** 2))", "the square of the filter"),
    Mutation(FILE, "strength: float = 51", "strength: float = 25.5", "half of the range"),
]  # fmt: skip


def filtered(image: np.ndarray, sigma: float) -> np.ndarray:
    """A Gaussian filter in space, with mirrored borders, of an image (C, H, W)."""
    for axis in (1, 2):
        n = image.shape[axis]
        at = np.arange(-3 * n, 4 * n)
        kernel = np.exp(-((at - np.arange(n)[:, None]) ** 2) / (2 * sigma**2))
        mirrored = np.where(at % (2 * n) < n, at % (2 * n), 2 * n - 1 - at % (2 * n))
        weights = np.zeros((n, n))
        np.add.at(weights, (slice(None), mirrored), kernel / kernel.sum(axis=1, keepdims=True))
        image = np.moveaxis(np.tensordot(weights, image, axes=(1, axis)), 0, axis)
    return image


@pytest.mark.parametrize("side", [32, 48])
def test_the_pattern_is_filtered_noise_between_0_and_51_gray_levels(side: int) -> None:
    """σ is 6 pixels on images of 32 pixels. All channels are scaled together."""
    generator = torch_generator(0, streams.LOW_FREQUENCY)
    drawn = torch.randn(3, side, side, generator=generator, dtype=torch.float64).numpy()
    smooth = filtered(idctn(drawn, axes=(1, 2), norm="ortho"), 6 * side / 32)
    expected = 0.2 * 255 * (smooth - smooth.min()) / (smooth.max() - smooth.min())
    found = LowFrequency().pattern(3, side, side).numpy()
    assert np.abs(found - expected).max() < 0.05
    images = torch.full((1, 3, side, side), 200, dtype=torch.uint8)
    assert np.abs(LowFrequency()(images).numpy() - (200 + expected)[None].clip(0, 255)).max() < 0.6
    assert expected.mean() > 10
