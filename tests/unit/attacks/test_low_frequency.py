"""The low-frequency pattern: its range, and that its energy lies in low DCT bins."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy.fft import dctn

from backdoor_lab.attacks.low_frequency import LowFrequency
from backdoor_lab.core.errors import ConfigError


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


def test_images_of_one_pixel_are_refused() -> None:
    with pytest.raises(ConfigError, match="images of 1x1 pixels"):
        LowFrequency()(torch.zeros(1, 1, 1, 1, dtype=torch.uint8))


@pytest.mark.parametrize("wrong", [{"strength": 0}, {"sigma": 0}, {"pattern_seed": -1}], ids=str)
def test_bad_options_are_refused_and_named_in_the_error(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"`trigger.{next(iter(wrong))}`"):
        LowFrequency(**wrong)
