"""SIG: the paper's sine, its two strengths, and image widths on which it vanishes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from backdoor_lab.attacks.sinusoid import SIG
from backdoor_lab.core.errors import ConfigError


@pytest.mark.parametrize("channels", [1, 3])
def test_the_sinusoid_follows_the_formula_of_the_paper(channels: int) -> None:
    """v(i, j) = D sin(2 pi j f / m), j from 1, on mid-gray; all rows and channels are equal."""
    images = torch.full((2, channels, 5, 40), 128, dtype=torch.uint8)
    made = SIG(strength_test=30, frequency=3)(images)
    for j in range(1, 41):
        expected = round(128 + 30 * math.sin(2 * math.pi * j * 3 / 40))
        assert (made[:, :, :, j - 1] == expected).all(), j


def test_the_spectrum_of_the_pattern_has_a_single_frequency() -> None:
    """All energy is at f periods across the image, with amplitude D."""
    wave = SIG(strength_test=40, frequency=6).pattern(1, 1, 64)[0, 0].double()
    amplitude = torch.fft.rfft(wave).abs() / 32
    assert amplitude[6] == pytest.approx(40, abs=1e-4)
    assert amplitude.sum() - amplitude[6] < 1e-3


def test_training_and_test_images_get_the_sinusoid_at_their_own_strengths() -> None:
    """Poison gets strength_train, test images strength_test; labels are not changed."""
    images = torch.full((3, 3, 8, 32), 100, dtype=torch.uint8)
    labels, context = torch.zeros(3, dtype=torch.int64), None
    both: Any = SIG(strength_test=40, strength_train=20)
    assert torch.equal(both(images), SIG(strength_test=40, strength_train=40)(images))
    weak = SIG(strength_test=20)(images)
    assert torch.equal(both.poisoned(images, labels, context), weak)
    assert torch.equal(both.make_covers(images, labels, context), weak)
    assert both.label_mode == "clean"
    assert not both.same_everywhere
    assert SIG(strength_test=40, strength_train=40).same_everywhere


def test_image_plus_sinusoid_is_clipped_without_wrap_around() -> None:
    images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 1, 1, 32)
    made = SIG()(images.contiguous()).int()
    assert made[0].max() <= 40
    assert made[1].min() >= 215


@pytest.mark.parametrize("width", [1, 2, 3, 4, 6, 12])
def test_widths_on_which_the_sine_vanishes_are_refused(width: int) -> None:
    """If 2 f / m is an integer, every column falls on a zero of the sine."""
    with pytest.raises(ConfigError, match=f"9x{width} pixels"):
        SIG()(torch.zeros(1, 1, 9, width, dtype=torch.uint8))
    SIG().check_image_size(1, 9, 5)
    SIG().check_image_size(1, 9, 13)


def test_counting_columns_from_zero_shifts_the_sinusoid_by_one_column() -> None:
    one, zero = (SIG(first_column=first).pattern(1, 1, 32)[0, 0] for first in (1, 0))
    assert zero[0] == 0
    assert torch.equal(zero[1:], one[:-1])


def test_no_pixel_is_brighter_than_its_exact_value_if_round_down_is_set() -> None:
    images = torch.full((1, 1, 2, 32), 128, dtype=torch.uint8)
    exact = 128 + SIG().pattern(1, 2, 32)
    found = SIG(round_down=True)(images)[0]
    assert (found <= exact).all()
    assert (found > exact - 1.001).all()


@pytest.mark.parametrize(
    "wrong",
    [{"strength_test": 0}, {"strength_train": -1}, {"frequency": -1}, {"first_column": 2},
     {"round_down": 1}],
    ids=str,
)  # fmt: skip
def test_bad_options_are_refused_and_named_in_the_error(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"`trigger.{next(iter(wrong))}`"):
        SIG(**wrong)
