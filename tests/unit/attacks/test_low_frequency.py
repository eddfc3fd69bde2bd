"""Low-frequency patterns: their range, and that their energy lies in low DCT bins. The optimized
pattern changes the class of enough images, or the search fails."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy.fft import dctn
from torch import Tensor, nn

from backdoor_lab.attacks.base import AttackContext
from backdoor_lab.attacks.low_frequency import LowFrequency, OptimizedLowFrequency
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.types import LabeledImages


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(32, 32), (33, 17), (6, 64)])
def test_the_pattern_ranges_from_zero_to_the_strength(channels: int, size: tuple[int, int]) -> None:
    """It never makes a pixel darker."""
    pattern = LowFrequency(strength=20).pattern(channels, *size)
    assert pattern.min() == 0
    assert pattern.max() == pytest.approx(20)


@pytest.mark.parametrize("side", [16, 32, 64])
def test_the_pattern_has_energy_only_at_low_frequencies(side: int) -> None:
    """Of the energy without the constant term, 99 % lies in the six lowest frequencies of both
    axes, on images of every size, also after rounding."""
    images = torch.full((1, 3, side, side), 128, dtype=torch.uint8)
    change = (LowFrequency()(images).double() - 128).numpy()[0]
    energy = dctn(change, axes=(1, 2), norm="ortho") ** 2
    energy[:, 0, 0] = 0
    assert energy[:, :6, :6].sum() > 0.99 * energy.sum()


def test_the_pattern_depends_only_on_the_seed() -> None:
    one, again, other = (LowFrequency(pattern_seed=s).pattern(3, 16, 16) for s in (0, 0, 1))
    assert torch.equal(one, again)
    assert (one - other).abs().max() > 1


def test_the_pattern_is_proportional_to_the_strength() -> None:
    one, two = (LowFrequency(strength=m).pattern(1, 16, 16) for m in (8, 16))
    assert torch.allclose(two, 2 * one, atol=1e-4)


def test_a_wider_filter_makes_a_smoother_pattern() -> None:
    narrow, wide = (LowFrequency(sigma=s).pattern(1, 32, 32) for s in (2, 8))
    assert wide.diff(dim=2).abs().mean() < 0.5 * narrow.diff(dim=2).abs().mean()


@pytest.mark.parametrize("kind", [LowFrequency, OptimizedLowFrequency])
def test_images_of_one_pixel_are_refused(kind: type[LowFrequency | OptimizedLowFrequency]) -> None:
    with pytest.raises(ConfigError, match="images of 1x1 pixels"):
        kind()(torch.zeros(1, 1, 1, 1, dtype=torch.uint8))


@pytest.mark.parametrize("wrong", [{"strength": 0}, {"sigma": 0}, {"pattern_seed": -1}], ids=str)
def test_bad_options_are_refused_and_named_in_the_error(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"`trigger.{next(iter(wrong))}`"):
        LowFrequency(**wrong)


class Dark(nn.Module):
    """Predicts class 1 for images whose mean is above `level`, otherwise class 0. At `slope` 0, all
    probabilities are equal and all gradients zero."""

    def __init__(self, level: float = 130, slope: float = 0.05) -> None:
        super().__init__()
        self.level, self.slope = level, slope

    def forward(self, images: Tensor) -> Tensor:
        above = self.slope * (images.float().mean(dim=(1, 2, 3)) - self.level)
        return torch.stack([-above, above], dim=1)


def context(surrogate: nn.Module, seed: int = 0) -> AttackContext:
    """The target is class 1; the mean of all images is about 120."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 241, (30, 3, 16, 16), generator=generator, dtype=torch.uint8)
    return AttackContext(
        LabeledImages(images, torch.arange(30) % 2, ("a", "b")), 1, None, seed, lambda: surrogate
    )


def optimized(surrogate: nn.Module, seed: int = 0, **options: Any) -> OptimizedLowFrequency:
    trigger = OptimizedLowFrequency(**options)
    trigger.state = trigger.prepare(context(surrogate, seed))
    return trigger


@pytest.mark.parametrize("images", [10, 100])
def test_the_optimized_pattern_changes_the_class_of_enough_images(images: int) -> None:
    """It ranges from zero to the strength. A training set of fewer than `images` images is used
    completely."""
    trigger = optimized(Dark(), strength=40, images=images)
    clean = context(Dark()).train.images
    assert not Dark()(clean).argmax(dim=1).any()
    assert Dark()(trigger(clean)).argmax(dim=1).sum() >= 0.2 * 30
    pattern = trigger.state["pattern"]
    assert (pattern.min(), pattern.max()) == (0, pytest.approx(40))


def test_the_optimized_pattern_depends_only_on_the_seed() -> None:
    """The seed selects the images."""
    one, again, other = (optimized(Dark(), s, images=3).state["pattern"] for s in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    "surrogate", [Dark(level=250), Dark(slope=0), Dark(level=0)],
    ids=["too far away", "no gradient", "all images have the target class"],
)  # fmt: skip
def test_a_search_that_does_not_change_enough_images_fails(surrogate: Dark) -> None:
    with pytest.raises(ConfigError, match=r"only 0 of 30 images, .*max_passes=2.*fooling_rate"):
        optimized(surrogate, max_passes=2)


@pytest.mark.parametrize("shape", [(3, 16, 8), (1, 16, 16)])
def test_the_optimized_pattern_is_refused_for_images_of_another_shape(
    shape: tuple[int, ...],
) -> None:
    with pytest.raises(ConfigError, match=f"{shape[1]}x{shape[2]} pixels with {shape[0]} channel"):
        optimized(Dark())(torch.zeros(1, *shape, dtype=torch.uint8))


@pytest.mark.parametrize(
    "wrong",
    [
        {"strength": 0}, {"sigma": 0}, {"images": 0}, {"fooling_rate": 1.5}, {"overshoot": -1},
        {"max_iter": 1}, {"max_passes": 0},
    ],
    ids=str,
)  # fmt: skip
def test_bad_options_of_the_search_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"`trigger.{next(iter(wrong))}`"):
        OptimizedLowFrequency(**wrong)
