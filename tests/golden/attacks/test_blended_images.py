"""Blended injection by NumPy and Pillow, from the paper."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from backdoor_lab.attacks.base import AttackContext
from backdoor_lab.attacks.blended import Blended
from backdoor_lab.core import streams
from backdoor_lab.core.rng import torch_generator
from backdoor_lab.core.types import LabeledImages
from tests.helpers.mutations import Mutation

FILE = "attacks/blended.py"
MUTATIONS = [
    Mutation(FILE, "images * (1 - alpha * opacity)", "images", "the image is not attenuated"),
    Mutation(FILE, "+ alpha * opacity * key", "+ opacity * key", "the key at full strength"),
    Mutation(FILE, "images * (1 - alpha * opacity)", "images * (1 - alpha)", "opacity ignored"),
    Mutation(FILE, "images, self.strength_train)", "images, self.strength_test)",
             "training images at the strength of test images"),
    Mutation(FILE, "torch.randint(0, 256,", "torch.randint(128, 256,", "a bright key"),
    Mutation("attacks/base.py", "values.round().clamp", "values.clamp", "truncated"),
]  # fmt: skip
SHAPE = (3, 9, 7)


def pictures() -> Tensor:
    generator = torch.Generator().manual_seed(6)
    return torch.randint(0, 256, (5, *SHAPE), generator=generator, dtype=torch.uint8)


def both(trigger: Blended) -> list[np.ndarray]:
    """The poisoned training images and the triggered test images."""
    images, labels = pictures(), torch.zeros(5, dtype=torch.int64)
    train = LabeledImages(images, labels, ("a",))
    context = AttackContext(train, 0, None, 0, torch.nn.Identity)
    return [
        each.double().numpy()
        for each in (trigger.poisoned(images, labels, context), trigger(images))
    ]


def test_noise_is_blended_as_in_the_paper() -> None:
    """The result is (1 - a) x + a k with uniform noise k. Training and test images share k but not
    a."""
    generator = torch_generator(4, streams.BLENDED, *SHAPE)
    key = torch.randint(0, 256, SHAPE, generator=generator).double().numpy()
    clean = pictures().double().numpy()
    trigger = Blended(strength_train=0.15, strength_test=0.4, pattern_seed=4)
    for a, found in zip((0.15, 0.4), both(trigger), strict=True):
        # Rounding of a half may go either way in float32.
        assert np.abs(found - ((1 - a) * clean + a * key)).max() < 0.501


def test_an_image_file_is_blended_with_its_transparency(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (9, 7, 4)).astype(np.uint8)
    Image.fromarray(values).save(tmp_path / "key.png")
    a = 0.3 * values[..., 3] / 255
    expected = (1 - a) * pictures().double().numpy() + a * values[..., :3].transpose(2, 0, 1)
    trigger = Blended(strength_train=0.3, strength_test=0.3, image=str(tmp_path / "key.png"))
    for found in both(trigger):
        assert np.abs(found - expected).max() < 0.501


def test_the_default_strength_is_that_of_the_paper() -> None:
    assert (Blended().strength_train, Blended().strength_test) == pytest.approx((0.2, 0.2))
