"""FTrojan against a direct implementation: to YCrCb, SciPy's DCT of every window, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.fft import dctn, idctn
from torch import Tensor

from backdoor_lab.attacks.frequency import FTrojan
from backdoor_lab.core.errors import ConfigError

# What one unit of Y, Cb and Cr adds to red, green and blue, in OpenCV.
RGB = np.array([[1, 0, 1.403], [1, -0.344, -0.714], [1, 1.773, 0]])
YUV = np.linalg.inv(RGB)


def noise(channels: int, height: int, width: int, low: int = 0, high: int = 256) -> Tensor:
    shape = (2, channels, height, width)
    generator = torch.Generator().manual_seed(3)
    return torch.randint(low, high, shape, dtype=torch.uint8, generator=generator)


def to_yuv(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.einsum("kc,nchw->nkhw", YUV, rgb)


def the_long_way(images: Tensor, magnitude: float, window: int) -> NDArray[np.float64]:
    """The paper's five steps without rounding, on sides that are multiples of the window."""
    values = images.double().numpy()
    yuv = to_yuv(values) if images.shape[1] == 3 else values
    for channel in (1, 2) if images.shape[1] == 3 else (0,):
        for top in range(0, images.shape[2], window):
            for left in range(0, images.shape[3], window):
                at = np.s_[:, channel, top : top + window, left : left + window]
                spectrum = dctn(yuv[at], axes=(1, 2), norm="ortho")
                spectrum[:, 15, 15] += magnitude
                spectrum[:, 31, 31] += magnitude
                yuv[at] = idctn(spectrum, axes=(1, 2), norm="ortho")
    if images.shape[1] == 1:
        return yuv
    back: NDArray[np.float64] = np.einsum("ck,nkhw->nchw", np.linalg.inv(YUV), yuv)
    return back


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(32, 32), (64, 32)])
def test_adding_a_fixed_pattern_gives_the_same_image_as_the_five_steps_of_the_paper(
    channels: int, size: tuple[int, int]
) -> None:
    """The images agree to a thousandth of a gray level."""
    images = noise(channels, *size)
    pattern = FTrojan().pattern(channels, *size).double().numpy()
    assert np.abs(images.numpy() + pattern - the_long_way(images, 30, 32)).max() < 1e-3
    rounded = the_long_way(images, 30, 32).round().clip(0, 255)
    assert (FTrojan()(images).numpy() != rounded).mean() < 1e-3


def test_only_the_configured_frequency_bins_change() -> None:
    """Before rounding, Cb and Cr change by the magnitude in two bins of each window; Y does not
    change."""
    change = to_yuv(FTrojan(strength=25).pattern(3, 64, 96).double().numpy()[None])[0]
    assert np.abs(change[0]).max() < 1e-3
    expected = np.zeros((32, 32))
    expected[15, 15] = expected[31, 31] = 25
    for channel in change[1:]:
        windows = channel.reshape(2, 32, 3, 32).transpose(0, 2, 1, 3).reshape(6, 32, 32)
        spectra = dctn(windows, axes=(1, 2), norm="ortho")
        assert np.abs(spectra - expected).max() < 1e-3


def test_the_change_of_the_configured_frequency_bins_survives_rounding() -> None:
    """In rounded images that never clip, the configured bins rise by the magnitude, up to rounding
    noise, and all other bins change by less than 10."""
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
    pattern = trigger.pattern(1, *size)[0].double().numpy()
    for left in range(0, size[1], wide):
        spectrum = dctn(pattern[:, left : left + wide], norm="ortho")
        assert np.abs(spectrum - expected).max() < 1e-3


def test_pixels_outside_whole_windows_do_not_change() -> None:
    """An image of 40 x 70 pixels has one row of two windows; the last eight rows and six columns do
    not change."""
    pattern = FTrojan().pattern(3, 40, 70)
    assert (pattern[:, :32, :64].abs() > 0).float().mean() > 0.9
    assert (pattern[:, 32:] == 0).all()
    assert (pattern[:, :, 64:] == 0).all()


def test_frequency_bins_that_coincide_are_refused() -> None:
    """An image of a single pixel has only one frequency."""
    with pytest.raises(ConfigError, match="1x1 pixels two of the frequencies coincide"):
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
