"""WaNet: field strength, bilinear sampling against PyTorch's, inversion, covers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backdoor_lab.attacks.base import AttackContext
from backdoor_lab.attacks.warp import WaNet, sample, straight
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.types import LabeledImages


def noise(n: int = 3, channels: int = 3, height: int = 20, width: int = 28) -> Tensor:
    shape = (n, channels, height, width)
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def smooth(height: int, width: int) -> Tensor:
    """One period of a wave each way, in 28..228."""
    rows = torch.linspace(0, 6.283, height).sin()[:, None]
    return (128 + 100 * rows * torch.linspace(0, 6.283, width).cos())[None, None]


def attack_context(seed: int = 0) -> AttackContext:
    train = LabeledImages(noise(1), torch.zeros(1, dtype=torch.int64), ("a", "b"))
    return AttackContext(train, 0, None, seed, nn.Module)


def covers(trigger: WaNet, images: Tensor, seed: int = 0) -> Tensor:
    return trigger.make_covers(
        images, torch.zeros(len(images), dtype=torch.int64), attack_context(seed)
    )


@pytest.mark.parametrize("size", [(20, 28), (7, 33)])
def test_warping_equals_grid_sample_of_pytorch(size: tuple[int, int]) -> None:
    """The images agree to a hundredth of a gray level; PyTorch orders coordinates as (x, y)."""
    images = noise(2, 3, *size)
    where = straight(*size).float() + torch.randn(2, 2, *size) * 0.2
    grid = where.flip(1).permute(0, 2, 3, 1)
    theirs = F.grid_sample(images.float(), grid, align_corners=True, padding_mode="border")
    assert (sample(images, where) - theirs).abs().max() < 1e-2


def test_an_identity_warping_field_leaves_the_image_unchanged() -> None:
    images = noise()
    still = sample(images, straight(20, 28).float()[None])
    assert (still - images).abs().max() < 1e-2


def test_a_displacement_of_one_pixel_spacing_shifts_the_image_by_one_pixel() -> None:
    """Image coordinates run from -1 to 1, so the spacing of n pixels is 2 / (n - 1). The border is
    repeated."""
    images = noise()
    right = straight(20, 28).float()[None]
    right[:, 1] += 2 / 27
    moved = sample(images, right)
    assert (moved[..., :-1] - images[..., 1:]).abs().max() < 1e-2
    assert (moved[..., -1] - images[..., -1]).abs().max() < 1e-2


@pytest.mark.parametrize("strength", [0.25, 0.5, 1.0])
def test_the_mean_displacement_follows_from_the_strength(strength: float) -> None:
    """At grid points away from the clipped border, the displacement is s M / L. The mean |M| over
    the whole grid is 1."""
    trigger = WaNet(strength=strength, grid=4)
    moved = trigger.field(4, 4).double() - straight(4, 4)
    drawn = WaNet(strength=strength, grid=4, rescale=0.1).field(4, 4).double() / 0.1
    field = (drawn - straight(4, 4)) * 4 / strength
    assert field.abs().mean() == pytest.approx(1, abs=1e-4)
    assert torch.allclose(moved[:, 1:3, 1:3] * 4 / strength, field[:, 1:3, 1:3], atol=1e-5)


def test_the_warping_field_is_proportional_to_the_strength() -> None:
    """Another seed gives another field; rows scale with height, columns with width."""
    weak, strong = (
        (WaNet(strength=s, rescale=0.1).field(40, 20).double() / 0.1 - straight(40, 20))
        for s in (0.25, 0.5)
    )
    assert torch.allclose(strong, 2 * weak, atol=1e-6)
    assert not torch.equal(WaNet(pattern_seed=1).field(8, 8), WaNet().field(8, 8))
    tall = WaNet(rescale=0.1).field(40, 40).double() / 0.1 - straight(40, 40)
    assert (weak.abs() > 0).all()
    flat = WaNet(rescale=0.1).field(40, 80).double() / 0.1 - straight(40, 80)
    assert torch.allclose(tall[1, :, 0], 2 * flat[1, :, 0], atol=1e-6)
    assert torch.allclose(tall[0, :, 0], flat[0, :, 0], atol=1e-6)


def test_the_warping_field_is_smooth() -> None:
    """Neighboring pixels move almost alike, unlike noise."""
    field = WaNet(strength=1.0).field(64, 64).double() - straight(64, 64)
    inside = field[:, 4:-4, 4:-4]
    assert inside.diff(dim=2).abs().mean() < 0.2 * inside.abs().mean()


def test_the_opposite_warping_field_undoes_the_warp() -> None:
    """This holds to first order, on a smooth image."""
    images = smooth(64, 64)
    field = WaNet().field(64, 64)
    back = 2 * straight(64, 64).float() - field
    bent = sample(images, field[None])
    undone = sample(bent, back[None])
    inside = (..., slice(3, -3), slice(3, -3))
    changed = (bent - images)[inside].abs().max()
    left = (undone - images)[inside].abs().max()
    assert changed > 4
    assert left < changed / 10


def test_covers_are_warped_differently_from_the_poison_and_from_each_other() -> None:
    """Four copies of one image give four different covers, none equal to the poison; another seed
    gives other covers."""
    images = noise(1).expand(4, -1, -1, -1)
    trigger = WaNet()
    made = covers(trigger, images)
    payload = trigger(images)
    assert torch.equal(payload[0], payload[3])
    everything = [*made, payload[0], images[0]]
    for i, one in enumerate(everything):
        assert all((one != other).float().mean() > 0.3 for other in everything[:i])
    assert torch.equal(made, covers(trigger, images))
    assert not torch.equal(made, covers(trigger, images, seed=1))


def test_the_noise_added_to_the_warp_of_covers_is_at_most_one_pixel() -> None:
    """On a ramp of ten gray levels per pixel, a pixel's value shows where it was sampled. Covers
    are sampled at most (L - 1) / (2 L) pixels from the poison, half of that on average."""
    ramp = (torch.arange(25) * 10).to(torch.uint8).expand(40, 1, 25, 25).contiguous()
    payload, made = WaNet()(ramp).double(), covers(WaNet(), ramp).double()
    apart = (made - payload)[..., 2:-2].abs() / 10
    assert apart.max() <= 12 / 25 + 0.11
    assert apart.mean() == pytest.approx(6 / 25, abs=0.02)


def test_poison_and_test_images_get_the_same_warp() -> None:
    """Only covers differ; there are two of them per poisoned image."""
    images, labels = noise(), torch.zeros(3, dtype=torch.int64)
    assert torch.equal(WaNet().poisoned(images, labels, attack_context()), WaNet()(images))
    assert WaNet.cover_rate == 2.0
    assert not WaNet().same_everywhere


@pytest.mark.parametrize("size", [(3, 9), (9, 3)])
def test_images_smaller_than_the_grid_are_refused(size: tuple[int, int]) -> None:
    """The error gives both sizes."""
    with pytest.raises(ConfigError, match=f"4x4 pixels, but the images have {size[0]}x{size[1]}"):
        WaNet()(noise(1, 1, *size))
    WaNet(grid=3)(noise(1, 1, *size))


@pytest.mark.parametrize(
    "wrong", [{"grid": 1}, {"strength": 0}, {"rescale": -1}, {"pattern_seed": 0.5}], ids=str
)
def test_bad_options_are_refused_and_named_in_the_error(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"`trigger.{next(iter(wrong))}`"):
        WaNet(**wrong)
