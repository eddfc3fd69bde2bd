"""The smooth trigger by NumPy: noise, the authors' low-pass filter, and their range."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from backdoor_lab.attacks.low_frequency import LowFrequency
from backdoor_lab.core import streams
from backdoor_lab.core.rng import torch_generator
from tests.helpers.mutations import Mutation

FILE = "attacks/low_frequency.py"
MUTATIONS = [
    Mutation(FILE, "image - image.min()", "image - image.mean()", "no brightness shift"),
    Mutation(FILE, "image.min()", "image.amin(dim=(1, 2), keepdim=True)", "a range per channel"),
    Mutation(FILE, "sigma * scale(height, width)", "sigma", "pixels of the image"),
    Mutation(FILE, "** 2) / 2)", "** 2))", "the square of the filter"),
    Mutation(FILE, "round(5 * sigma)", "round(6 * sigma)", "a longer filter"),
    Mutation(FILE, "(taps - 1) // 2", "taps // 2", "an even filter is shifted the other way"),
    Mutation(FILE, "taps - 1)], 0)", "taps - 1)], kernel[0])", "the filter does not end"),
    Mutation(FILE, "float = 51, sigma", "float = 25.5, sigma", "half of the range"),
]  # fmt: skip
Numbers = NDArray[np.float64]


def smooth(image: Numbers, sigma: int) -> Numbers:
    """The authors' filter of an image (C, H, W): 5 sigma taps; zeros are added at the edges, one
    more at the lower and right edge if the number of taps is even."""
    taps = 5 * sigma
    kernel = np.exp(-(((np.arange(taps) - (taps - 1) / 2) / sigma) ** 2) / 2)
    kernel = kernel / kernel.sum()
    before, after = (taps // 2 - 1, taps // 2) if taps % 2 == 0 else (taps // 2, taps // 2)
    for axis in (1, 2):
        width = [(before, after) if axis == each else (0, 0) for each in range(3)]
        padded = np.lib.stride_tricks.sliding_window_view(np.pad(image, width), taps, axis=axis)
        image = padded @ kernel
    return image


@pytest.mark.parametrize(("side", "sigma"), [(32, 6), (48, 9)])
def test_the_pattern_is_filtered_noise_between_0_and_51_gray_levels(side: int, sigma: int) -> None:
    """The filter has 30 taps on images of 32 pixels, 45 on images of 48. All channels are scaled
    together."""
    generator = torch_generator(0, streams.LOW_FREQUENCY)
    drawn = torch.randn(3, side, side, generator=generator, dtype=torch.float64).numpy()
    passed = smooth(drawn, sigma)
    expected = 0.2 * 255 * (passed - passed.min()) / (passed.max() - passed.min())
    found = LowFrequency().pattern(3, side, side).numpy()
    assert np.abs(found - expected).max() < 1e-4
    images = torch.full((1, 3, side, side), 200, dtype=torch.uint8)
    assert np.abs(LowFrequency()(images).numpy() - (200 + expected)[None].clip(0, 255)).max() < 0.6
    assert expected.mean() > 10
