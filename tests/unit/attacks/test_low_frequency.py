"""The low-frequency pattern: all its energy lies in the low DCT bins."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.fft import dctn

from backdoor_lab.attacks.low_frequency import LowFrequency
from backdoor_lab.core.errors import ConfigError


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(32, 32), (33, 17), (6, 64)])
@pytest.mark.parametrize("band", [2, 5])
def test_the_pattern_has_energy_only_at_low_frequencies(
    channels: int, size: tuple[int, int], band: int
) -> None:
    """SciPy's DCT of the pattern is zero exactly outside the band and at the constant term; the
    pattern's largest value is the stated one."""
    pattern = LowFrequency(strength=20, band=band).pattern(channels, *size).double().numpy()
    spectrum = np.abs(dctn(pattern, axes=(1, 2), norm="ortho"))
    low = np.zeros(size, bool)
    low[:band, :band] = True
    low[0, 0] = False
    assert spectrum[:, ~low].max() < 1e-3
    assert spectrum[:, low].min() > 1e-3
    assert np.abs(pattern).max() == pytest.approx(20, abs=1e-4)


def test_rounding_keeps_the_energy_at_low_frequencies() -> None:
    """In the rounded image 99 % of the change's energy lies in the band."""
    images = torch.full((1, 3, 32, 32), 128, dtype=torch.uint8)
    change = (LowFrequency()(images).double() - 128).numpy()[0]
    energy = dctn(change, axes=(1, 2), norm="ortho") ** 2
    assert energy[:, :4, :4].sum() > 0.99 * energy.sum()


def test_the_pattern_depends_only_on_the_seed() -> None:
    one, again, other = (LowFrequency(pattern_seed=s).pattern(3, 16, 16) for s in (0, 0, 1))
    assert torch.equal(one, again)
    assert (one - other).abs().max() > 1


def test_the_pattern_is_proportional_to_the_strength() -> None:
    one, two = (LowFrequency(strength=m).pattern(1, 16, 16) for m in (8, 16))
    assert torch.allclose(two, 2 * one, atol=1e-4)


@pytest.mark.parametrize("size", [(4, 9), (9, 4), (1, 1)])
def test_images_no_larger_than_the_band_are_refused(size: tuple[int, int]) -> None:
    """The error gives the image's size."""
    with pytest.raises(ConfigError, match=f"images of {size[0]}x{size[1]} pixels"):
        LowFrequency()(torch.zeros(1, 1, *size, dtype=torch.uint8))


@pytest.mark.parametrize("wrong", [{"strength": 0}, {"band": 1}, {"pattern_seed": -1}], ids=str)
def test_bad_options_are_refused_and_named_in_the_error(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"`trigger.{next(iter(wrong))}`"):
        LowFrequency(**wrong)
