"""Refool: x + k * x_R with three kernels, and a synthetic scene with natural statistics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.fft import dctn
from scipy.ndimage import gaussian_filter
from torch import Tensor

from backdoor_lab.attacks.reflection import KINDS, Refool
from backdoor_lab.core.errors import ConfigError


def saved(path: Path, pixels: Any) -> str:
    Image.fromarray(np.array(pixels, np.uint8)).save(path)
    return str(path)


def point(folder: Path) -> str:
    """A black image of 21 x 25 pixels with one white one at (10, 12)."""
    pixels = np.zeros((21, 25), np.uint8)
    pixels[10, 12] = 255
    return saved(folder / "point.png", pixels)


@pytest.mark.parametrize("kind", KINDS)
def test_reflection_is_added_and_clipped(kind: str) -> None:
    """x' = clip(round(x + k * x_R)): a reflection only adds light."""
    generator = torch.Generator().manual_seed(4)
    images = torch.randint(0, 256, (3, 3, 16, 24), dtype=torch.uint8, generator=generator)
    trigger = Refool(kind=kind)
    exact = (images.double() + trigger.pattern(3, 16, 24)).clamp(0, 255)
    made = trigger(images)
    assert (made - exact).abs().max() <= 0.5 + 1e-4
    assert (made >= images).all()
    assert trigger.label_mode == "clean"


def test_an_in_focus_reflection_adds_the_scaled_scene(tmp_path: Path) -> None:
    """The kernel is a scalar: strength times the file's pixels."""
    pixels = np.arange(0, 240, 2).reshape(10, 12)
    image = saved(tmp_path / "a.png", pixels)
    found = Refool(kind="in_focus", strength=0.25, image=image).pattern(3, 10, 12)
    assert torch.allclose(found, torch.tensor(pixels).float().mul(0.25).expand(3, 10, 12))


@pytest.mark.parametrize("sigma", [0.8, 2.0])
def test_an_out_of_focus_reflection_equals_the_gaussian_filter_of_scipy(sigma: float) -> None:
    """The two are equal away from the border."""
    scene = Refool().scene(3, 48, 40).numpy()
    theirs = 0.5 * gaussian_filter(scene, sigma=(0, sigma, sigma), truncate=9)
    found = Refool(kind="out_of_focus", sigma=sigma, strength=0.5).pattern(3, 48, 40).numpy()
    inside = np.s_[:, 18:-18, 18:-18]
    assert np.abs(found[inside] - theirs[inside]).max() < 1e-3


def test_a_ghost_reflection_adds_the_scene_twice_with_a_shift(tmp_path: Path) -> None:
    """A point of light appears twice: once with the share `first` of the strength, and once
    shifted, with the remaining strength."""
    ghost = Refool(kind="ghost", strength=0.8, first=0.7, shift=(-2, 5), image=point(tmp_path))
    seen = ghost.pattern(1, 21, 25)[0]
    expected = torch.zeros(21, 25)
    expected[10, 12] = 255 * 0.8 * 0.7
    expected[8, 17] = 255 * 0.8 * 0.3
    assert torch.allclose(seen, expected, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_every_reflection_kernel_sums_to_the_strength(kind: str, tmp_path: Path) -> None:
    """A uniform gray scene adds strength times its value everywhere, borders included."""
    image = saved(tmp_path / "grey.png", np.full((9, 9), 100))
    found = Refool(kind=kind, strength=0.3, sigma=3, shift=(4, -4), image=image)
    assert torch.allclose(found.pattern(3, 9, 9), torch.full((3, 9, 9), 30.0), atol=1e-4)


def test_the_three_kinds_of_reflection_differ() -> None:
    """Out of focus is smoother than in focus; a ghost is neither."""
    found = {kind: Refool(kind=kind).pattern(1, 32, 32) for kind in KINDS}
    rough = {kind: pattern.diff(dim=2).abs().mean() for kind, pattern in found.items()}
    assert rough["out_of_focus"] < 0.7 * rough["in_focus"]
    assert (found["ghost"] - found["in_focus"]).abs().max() > 10


def slope(scene: Tensor) -> float:
    """The exponent of amplitude over frequency, of the DCT on a log-log scale."""
    n = scene.shape[-1]
    power = (dctn(scene.numpy(), axes=(1, 2), norm="ortho") ** 2).mean(axis=0)
    radius = np.hypot(*np.mgrid[:n, :n]).round().astype(int)
    rings = np.arange(1, n)
    mean = np.array([power[radius == ring].mean() for ring in rings])
    return float(np.polyfit(np.log(rings), np.log(mean) / 2, 1)[0])


def test_synthetic_scene_has_natural_image_statistics() -> None:
    """Its amplitude falls as one over frequency (exponent -1; white noise has 0), it spans 0..255,
    and its channels correlate; another seed draws another scene."""
    scene = Refool().scene(3, 64, 64)
    assert slope(scene) == pytest.approx(-1, abs=0.1)
    assert abs(slope(torch.randn(3, 64, 64).double())) < 0.1
    assert scene.min() == 0
    assert scene.max() == pytest.approx(255)
    assert np.corrcoef(scene.flatten(1).numpy())[0, 1] > 0.7
    assert not torch.equal(scene, Refool(pattern_seed=1).scene(3, 64, 64))
    assert torch.equal(scene, Refool().scene(3, 64, 64))


def test_transparent_pixels_do_not_reflect(tmp_path: Path) -> None:
    pixels = np.full((8, 8, 4), 200)
    pixels[:, :4, 3], pixels[:, 4:, 3] = 255, 0
    image = saved(tmp_path / "half.png", pixels)
    found = Refool(kind="in_focus", strength=0.5, image=image).pattern(3, 8, 8)
    assert torch.equal(found[:, :, :4], torch.full((3, 8, 4), 100.0))
    assert (found[:, :, 4:] == 0).all()


def test_a_scene_that_is_black_or_has_one_pixel_is_refused(tmp_path: Path) -> None:
    """No scene can be drawn on one pixel, and a black scene reflects nothing."""
    images = torch.zeros(1, 1, 1, 1, dtype=torch.uint8)
    with pytest.raises(ConfigError, match="1x1"):
        Refool()(images)
    Refool(image=saved(tmp_path / "a.png", [[200]]))(images)
    with pytest.raises(ConfigError, match="below half a gray level"):
        Refool(image=saved(tmp_path / "b.png", [[0]]))(images)


@pytest.mark.parametrize(
    "wrong",
    [{"kind": "mirror"}, {"strength": 0}, {"sigma": 0}, {"shift": 3}, {"shift": [1, 2, 3]},
     {"shift": [0.5, 1]}, {"first": 2}, {"pattern_seed": -1}, {"image": "no/such/file.png"}],
    ids=str,
)  # fmt: skip
def test_bad_options_are_refused_and_named_in_the_error(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"`trigger.{next(iter(wrong))}`"):
        Refool(**wrong)
