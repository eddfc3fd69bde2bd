"""FTrojan by NumPy: to YCrCb, the DCT of each window, two higher coefficients, and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.fft import dctn, idctn

from backdoor_lab.attacks.frequency import FTrojan
from tests.helpers.mutations import Mutation

FILE = "attacks/frequency.py"
MUTATIONS = [
    Mutation(FILE, "(0.0, -0.344, 1.773)", "(0.0, -0.39465, 2.03211)", "U in place of Cb"),
    Mutation(FILE, "(1.403, -0.714, 0.0)", "(1.13983, -0.5806, 0.0)", "V in place of Cr"),
    Mutation(FILE, "b + r for b, r", "b - r for b, r", "Cr is lowered"),
    Mutation(FILE, "= inverse_dct(spectrum)", "= inverse_dct(spectrum / 2)", "half as much"),
    Mutation(FILE, "strength: float = 30", "strength: float = 20", "the second repository"),
    Mutation(FILE, "((15, 15), (31, 31))", "((15, 15), (30, 30))", "another frequency"),
]  # fmt: skip
WEIGHTS = np.array([0.299, 0.587, 0.114])


@pytest.mark.parametrize("size", [(32, 32), (32, 64)], ids=str)
def test_triggered_images_follow_the_authors_steps(size: tuple[int, int]) -> None:
    """Y, Cr = 0.713 (R - Y) and Cb = 0.564 (B - Y), as in OpenCV. The magnitude 30 is added to (15,
    15) and (31, 31) of each window of Cr and Cb. Rounding differs, so that gray levels are compared
    within 1.5."""
    generator = torch.Generator().manual_seed(9)
    images = torch.randint(20, 236, (3, 3, *size), generator=generator).byte()
    red, green, blue = images.double().numpy().transpose(1, 0, 2, 3)
    y = WEIGHTS[0] * red + WEIGHTS[1] * green + WEIGHTS[2] * blue
    chroma = []
    for plane in (0.713 * (red - y), 0.564 * (blue - y)):
        changed = plane.copy()
        for left in range(0, size[1], 32):
            spectrum = dctn(plane[:, :, left : left + 32], axes=(1, 2), norm="ortho")
            for place in ((15, 15), (31, 31)):
                spectrum[:, place[0], place[1]] += 30
            changed[:, :, left : left + 32] = idctn(spectrum, axes=(1, 2), norm="ortho")
        chroma.append(changed)
    cr, cb = chroma
    back = np.stack([y + 1.403 * cr, y - 0.714 * cr - 0.344 * cb, y + 1.773 * cb], axis=1)
    found = FTrojan()(images).numpy()
    assert np.abs(found - back.clip(0, 255)).max() < 0.8
    assert np.abs(found - back.clip(0, 255)).mean() < 0.3
