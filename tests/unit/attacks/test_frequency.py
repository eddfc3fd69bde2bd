"""FTrojan's change against SciPy's DCT, and what images of other sizes and channels become."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.fft import dctn
from torch import Tensor

from backdoor_lab.attacks.frequency import FTrojan
from backdoor_lab.core.errors import ConfigError


def noise(channels: int, height: int, width: int, low: int = 0, high: int = 256) -> Tensor:
    shape = (2, channels, height, width)
    generator = torch.Generator().manual_seed(3)
    return torch.randint(low, high, shape, dtype=torch.uint8, generator=generator)


def test_a_grayscale_image_gets_the_change_in_its_only_channel() -> None:
    images = noise(1, 64, 32)
    expected = (images + FTrojan().change(64, 32).float()).round().clamp(0, 255)
    assert torch.equal(FTrojan()(images), expected.byte())


def test_only_the_configured_frequency_bins_change() -> None:
    change = FTrojan(strength=25).change(64, 96).numpy()
    expected = np.zeros((32, 32))
    expected[15, 15] = expected[31, 31] = 25
    windows = change.reshape(2, 32, 3, 32).transpose(0, 2, 1, 3).reshape(6, 32, 32)
    assert np.abs(dctn(windows, axes=(1, 2), norm="ortho") - expected).max() < 1e-9


def test_the_change_of_the_configured_frequency_bins_survives_rounding() -> None:
    """In grayscale images that never clip, the configured bins rise by the magnitude, up to
    rounding noise, and all other bins change by less than 10."""
    images = noise(1, 32, 32, low=20, high=235)
    change = (FTrojan()(images).double() - images).numpy()
    spectra = dctn(change[:, 0], axes=(1, 2), norm="ortho")
    raised = np.stack([spectra[:, 15, 15], spectra[:, 31, 31]])
    assert np.abs(raised - 30).max() < 2
    spectra[:, [15, 31], [15, 31]] = 0
    assert np.abs(spectra).max() < 10


@pytest.mark.parametrize(("size", "bins"), [((28, 28), [(13, 13), (27, 27)]),
                                            ((5, 64), [(2, 15), (4, 31)])])  # fmt: skip
def test_frequency_bins_are_scaled_down_for_images_smaller_than_the_window(
    size: tuple[int, int], bins: list[tuple[int, int]]
) -> None:
    """The window shrinks to the image, and bins stay at the same fraction of the highest
    frequency."""
    trigger = FTrojan()
    assert trigger.bins_on(*size) == bins
    high, wide = min(32, size[0]), min(32, size[1])
    expected = np.zeros((high, wide))
    for row, column in bins:
        expected[row, column] = 30
    pattern = trigger.change(*size).numpy()
    for left in range(0, size[1], wide):
        spectrum = dctn(pattern[:, left : left + wide], norm="ortho")
        assert np.abs(spectrum - expected).max() < 1e-3


def test_pixels_at_the_border_that_do_not_fill_a_window_are_unchanged() -> None:
    """An image of 40 x 70 pixels has one row of two windows; the last eight rows and six columns do
    not change."""
    change = FTrojan().change(40, 70)
    assert (change[:32, :64].abs() > 0).float().mean() > 0.9
    assert (change[32:] == 0).all()
    assert (change[:, 64:] == 0).all()


def test_frequency_bins_that_coincide_are_refused() -> None:
    """An image of a single pixel has only one frequency."""
    with pytest.raises(ConfigError, match="1x1 pixels, two of the frequencies coincide"):
        FTrojan()(noise(1, 1, 1))
    FTrojan(bins=[[0, 0]])(noise(1, 1, 1))


@pytest.mark.parametrize(
    "wrong",
    [{"strength": -1}, {"window": 1}, {"bins": []}, {"bins": [[1]]}, {"bins": [[32, 0]]},
     {"bins": 3}, {"window": 16}],
    ids=str,
)  # fmt: skip
def test_bad_options_are_refused_and_named_in_the_error(wrong: dict[str, Any]) -> None:
    """One example is a frequency bin outside the window."""
    with pytest.raises(ConfigError, match=r"`trigger\."):
        FTrojan(**wrong)
