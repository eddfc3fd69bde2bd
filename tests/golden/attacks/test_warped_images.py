"""WaNet's field, sampling and covers by NumPy and SciPy, from the paper and the authors' code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.interpolate import RegularGridInterpolator
from torch import Tensor

from backdoor_lab.attacks.base import AttackContext
from backdoor_lab.attacks.warp import WaNet
from backdoor_lab.core import streams
from backdoor_lab.core.rng import torch_generator
from backdoor_lab.core.types import LabeledImages
from tests.helpers.mutations import Mutation

FILE = "attacks/warp.py"
MUTATIONS = [
    Mutation(FILE, "rough / rough.abs().mean()", "rough / rough.abs().amax()", "the field's scale"),
    Mutation(FILE, "self.strength * smooth / _sides", "self.strength * smooth * 0.1 * _sides",
             "the strength is not relative to the side"),
    Mutation(FILE, "(bent * self.rescale).clamp(-1, 1)", "bent.clamp(-1, 1)", "no rescaling"),
    Mutation(FILE, "(bent * self.rescale).clamp(-1, 1)", "(bent * self.rescale)", "no clipping"),
    Mutation(FILE, "width), generator=generator) * 2 - 1", "width), generator=generator)",
             "noise in 0..1"),
    Mutation(FILE, "field(height, width) + drawn", "field(height, width) - drawn", "the sign"),
    Mutation(FILE, "+ 1) / 2 * last", "+ 1) / 2 * (last - 1)", "corners are not aligned"),
    Mutation(FILE, "* (1 - down) + lower * down", "* down + lower * (1 - down)", "rows exchanged"),
    Mutation(FILE, 'mode="bicubic", align_corners=True', 'mode="bilinear", align_corners=True',
             "bilinear upsampling"),
]  # fmt: skip
GRID, HEIGHT, WIDTH = 4, 16, 12


def pictures() -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (6, 3, HEIGHT, WIDTH), generator=generator, dtype=torch.uint8)


def cubic(values: NDArray[np.float64], length: int) -> NDArray[np.float64]:
    """Upsamples the last axis by Keys' cubic convolution with a = -0.75 and aligned corners;
    values beyond the ends repeat the last one."""
    a, n = -0.75, values.shape[-1]
    at = np.linspace(0, n - 1, length)
    low = np.floor(at).astype(int)
    found = np.zeros((*values.shape[:-1], length))
    for step in range(-1, 3):
        x = np.abs(at - (low + step))
        near = (a + 2) * x**3 - (a + 3) * x**2 + 1
        far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
        weight = np.where(x <= 1, near, np.where(x < 2, far, 0))
        found += weight * values[..., np.clip(low + step, 0, n - 1)]
    return found


def field(
    strength: float, rescale: float, noise: NDArray[np.float64] | float
) -> NDArray[np.float64]:
    """Where each pixel is sampled: (2, H, W), row and column in -1..1."""
    generator = torch_generator(0, streams.WARP)
    rough = torch.rand((1, 2, GRID, GRID), generator=generator).double().numpy()[0] * 2 - 1
    rough /= np.abs(rough).mean()
    smooth = cubic(cubic(rough, WIDTH).swapaxes(1, 2), HEIGHT).swapaxes(1, 2)
    sides = np.array([HEIGHT, WIDTH])[:, None, None]
    rows, columns = np.linspace(-1, 1, HEIGHT), np.linspace(-1, 1, WIDTH)
    straight = np.stack(np.meshgrid(rows, columns, indexing="ij"))
    bent = ((straight + strength * smooth / sides) * rescale).clip(-1, 1)
    return (bent + noise / sides).clip(-1, 1)


def sampled(image: NDArray[np.float64], where: NDArray[np.float64]) -> NDArray[np.float64]:
    """The image (C, H, W) at `where`, bilinearly with aligned corners."""
    axes = (np.linspace(-1, 1, HEIGHT), np.linspace(-1, 1, WIDTH))
    points = where.reshape(2, -1).T
    return np.stack(
        [RegularGridInterpolator(axes, c)(points).reshape(HEIGHT, WIDTH) for c in image]
    )


@pytest.mark.parametrize(("strength", "rescale"), [(0.5, 1.0), (3.0, 1.0), (0.5, 1.3), (0.5, 0.7)])
def test_triggered_images_follow_the_paper(strength: float, rescale: float) -> None:
    images, where = pictures(), field(strength, rescale, 0.0)
    found = WaNet(grid=GRID, strength=strength, rescale=rescale)(images).double().numpy()
    expected = np.stack([sampled(each, where) for each in images.double().numpy()])
    assert np.abs(found - expected).max() < 0.51


def test_covers_follow_the_noise_mode_of_the_paper() -> None:
    images = pictures()
    context = AttackContext(
        LabeledImages(images, torch.arange(6) % 2, ("a", "b")), 0, None, 3, torch.nn.Identity
    )
    drawn = torch.rand(
        (6, 2, HEIGHT, WIDTH), generator=context.generator(streams.WARP, streams.COVERS)
    )
    noise = drawn.double().numpy() * 2 - 1
    found = WaNet(grid=GRID).make_covers(images, torch.arange(6) % 2, context).double().numpy()
    for k, image in enumerate(images.double().numpy()):
        assert np.abs(found[k] - sampled(image, field(0.5, 1.0, noise[k]))).max() < 0.51


def test_defaults_are_those_of_the_authors() -> None:
    trigger = WaNet()
    assert (trigger.grid, trigger.strength, trigger.rescale) == (4, 0.5, 1.0)
    assert (trigger.cover_rate, trigger.label_mode) == (2.0, "all_to_one")
