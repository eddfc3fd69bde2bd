"""Blending: the paper's formula, a separate strength in training, and the key image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from backdoor_lab.attacks.blended import Blended
from backdoor_lab.core.errors import ConfigError


def noise(channels: int = 3, height: int = 16, width: int = 12) -> Tensor:
    shape = (4, channels, height, width)
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("alpha", [0.01, 0.2, 0.5, 0.97, 1.0])
def test_blending_follows_the_formula_of_the_paper(alpha: float, channels: int) -> None:
    """The result is (1 - a) x + a k within half a gray level, for any strength a."""
    images, trigger = noise(channels), Blended(strength_test=alpha)
    key, _ = trigger.key(*images.shape[1:])
    exact = (1 - alpha) * images.double() + alpha * key.double()
    assert (trigger(images) - exact).abs().max() <= 0.5 + 1e-4


def test_at_strength_one_the_image_is_replaced_by_the_key_pattern() -> None:
    images, trigger = noise(), Blended(strength_test=1)
    key, _ = trigger.key(*images.shape[1:])
    assert torch.equal(trigger(images), key.byte().expand_as(images))


def test_blending_changes_the_image_in_proportion_to_the_strength() -> None:
    """Up to rounding, the change at strength 0.6 is three times that at 0.2."""
    images = noise()
    weak, strong = (Blended(strength_test=a)(images).double() - images for a in (0.2, 0.6))
    assert (strong - 3 * weak).abs().max() <= 0.5 + 3 * 0.5 + 1e-4


def test_training_and_test_images_are_blended_at_their_own_strengths() -> None:
    """Poison and covers get strength_train, test images strength_test."""
    images, labels = noise(), torch.zeros(4, dtype=torch.int64)
    context: Any = None
    both = Blended(strength_test=0.5, strength_train=0.1)
    assert torch.equal(both(images), Blended(strength_test=0.5)(images))
    assert torch.equal(both.poisoned(images, labels, context), Blended(strength_test=0.1)(images))
    assert torch.equal(
        both.make_covers(images, labels, context), Blended(strength_test=0.1)(images)
    )
    assert not both.same_everywhere
    assert Blended(strength_test=0.1, strength_train=0.1).same_everywhere


def test_the_default_key_pattern_is_uniform_seeded_noise() -> None:
    """Its values are uniform over 0..255, equal for the same seed and different for another."""
    key, opacity = Blended().key(3, 64, 64)
    counts = torch.histc(key, bins=8, min=-0.5, max=255.5)
    assert (counts / key.numel() - 1 / 8).abs().max() < 0.015
    assert torch.equal(opacity, torch.ones(64, 64))
    assert torch.equal(key, Blended().key(3, 64, 64)[0])
    assert not torch.equal(key, Blended(pattern_seed=1).key(3, 64, 64)[0])
    assert (key[0] != key[1]).float().mean() > 0.9


def test_a_key_pattern_from_a_file_is_resized_and_keeps_its_transparency(tmp_path: Path) -> None:
    """Where the key is transparent, nothing changes."""
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[:, :2] = [200, 100, 0, 255]
    Image.fromarray(pixels).save(tmp_path / "key.png")
    made = Blended(strength_test=0.25, image=str(tmp_path / "key.png"))
    images = torch.full((1, 3, 16, 16), 100, dtype=torch.uint8)
    assert made(images)[0, :, 5, 1].tolist() == [125, 100, 75]
    assert made(images)[0, :, 5, -1].tolist() == [100, 100, 100]


@pytest.mark.parametrize(
    "wrong",
    [{"strength_test": 0}, {"strength_train": 1.1}, {"pattern_seed": -1}, {"image": ""}],
    ids=str,
)
def test_bad_options_are_refused_and_named_in_the_error(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"`trigger.{next(iter(wrong))}`"):
        Blended(**wrong)
