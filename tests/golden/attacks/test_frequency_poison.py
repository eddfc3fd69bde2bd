"""FTrojan by NumPy: to OpenCV's YCrCb, the DCT of each window, two higher coefficients, and back.

`FTrojan` also agreed with the authors' functions (`RGB2YUV`, `DCT`, `IDCT`, `YUV2RGB` of image.py
at ac8cd14), which were run by hand with OpenCV 5.0 on 400 random images of 32 x 32 pixels, 100 of
them with the values 0 and 255 only. With Y rounded before the way back all values are equal; as the
code is, 6 % differ by 1.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.fft import dctn, idctn

from backdoor_lab.attacks.frequency import FTrojan
from tests.helpers.mutations import Mutation

FILE = "attacks/frequency.py"
MUTATIONS = [
    Mutation(FILE, "FROM_RED = 11682", "FROM_RED = 14369", "V in place of Cr"),
    Mutation(FILE, "FROM_BLUE = 9241", "FROM_BLUE = 8061", "U in place of Cb"),
    Mutation(FILE, "LUMA = (4899, 9617, 1868)", "LUMA = (1868, 9617, 4899)", "BGR in place of RGB"),
    Mutation(FILE, "(plane + change)", "(plane - change)", "the coefficients are lowered"),
    Mutation(FILE, ".long() % 256", ".round().long() % 256", "chroma is rounded, not truncated"),
    Mutation(FILE, ".long() % 256", ".clamp(0, 255).long()", "chroma is clipped, not wrapped"),
    Mutation(FILE, "(x + ONE // 2).div", "x.div", "colors are rounded down"),
    Mutation(FILE, "= inverse_dct(spectrum)", "= inverse_dct(spectrum / 2)", "half as much"),
    Mutation(FILE, "strength: float = 30", "strength: float = 20", "the second repository"),
    Mutation(FILE, "((15, 15), (31, 31))", "((15, 15), (30, 30))", "another frequency"),
]  # fmt: skip


def rounded(x: np.ndarray) -> np.ndarray:
    """To the nearest integer; halves up."""
    return np.floor(x + 0.5)


def share(x: float) -> float:
    """A coefficient of OpenCV: x in units of 2^-14."""
    return float(np.rint(x * 2**14) / 2**14)


def to_ycrcb(rgb: np.ndarray) -> list[np.ndarray]:
    red, green, blue = rgb
    y = rounded(share(0.299) * red + share(0.587) * green + share(0.114) * blue)
    cr, cb = 0.713 * 2**14, 0.564 * 2**14
    chroma = [(red - y) * np.rint(cr) / 2**14, (blue - y) * np.rint(cb) / 2**14]
    return [y, *((rounded(plane) + 128).clip(0, 255) for plane in chroma)]


def to_rgb(y: np.ndarray, cr: np.ndarray, cb: np.ndarray) -> np.ndarray:
    cr, cb = cr - 128, cb - 128
    green = rounded(share(-0.714) * cr + share(-0.344) * cb)
    red, blue = rounded(share(1.403) * cr), rounded(share(1.773) * cb)
    return np.stack([y + red, y + green, y + blue]).clip(0, 255)


def with_trigger(plane: np.ndarray) -> np.ndarray:
    """`plane` (n, H, W) after the DCT, the change and the inverse DCT of each 32 x 32 window, as an
    8-bit integer: truncated, and modulo 256."""
    changed = plane.copy()
    for top in range(0, plane.shape[1], 32):
        for left in range(0, plane.shape[2], 32):
            window = np.s_[:, top : top + 32, left : left + 32]
            spectrum = dctn(plane[window], axes=(1, 2), norm="ortho")
            for place in ((15, 15), (31, 31)):
                spectrum[:, place[0], place[1]] += 30
            changed[window] = idctn(spectrum, axes=(1, 2), norm="ortho")
    assert np.abs(changed - np.rint(changed)).min() > 1e-9
    return np.trunc(changed) % 256


@pytest.mark.parametrize("size", [(32, 32), (64, 32), (32, 64)], ids=str)
@pytest.mark.parametrize("saturated", [False, True])
def test_triggered_images_follow_the_authors_steps(size: tuple[int, int], saturated: bool) -> None:
    """Y = 0.299 R + 0.587 G + 0.114 B, Cr = 0.713 (R - Y) + 128, Cb = 0.564 (B - Y) + 128 and back
    by 1.403, -0.714, -0.344 and 1.773, each coefficient in units of 2^-14. The magnitude 30 is
    added to (15, 15) and (31, 31) of each window of Cr and Cb. Images of the values 0 and 255 have
    chroma values that leave 0..255."""
    generator = torch.Generator().manual_seed(9)
    images = torch.randint(0, 256, (3, 3, *size), generator=generator).byte()
    if saturated:
        images = torch.where(images < 128, 0, 255).byte()
    y, *chroma = to_ycrcb(images.double().numpy().transpose(1, 0, 2, 3))
    expected = to_rgb(y, *map(with_trigger, chroma)).transpose(1, 0, 2, 3)
    assert np.array_equal(FTrojan()(images).numpy(), expected)
