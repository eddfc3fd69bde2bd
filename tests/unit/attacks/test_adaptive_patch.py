"""The adaptive patches against a second implementation that draws the YAML's patches by pixel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from omegaconf import OmegaConf
from torch import Tensor, nn

from backdoor_lab.attacks.adaptive_patch import AdaptivePatch
from backdoor_lab.attacks.base import AttackContext
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.types import LabeledImages

YAML = Path(__file__).resolve().parents[3] / "conf/trigger/adaptive_patch.yaml"
PATCHES: Any = OmegaConf.to_container(OmegaConf.load(YAML).patches)
DOT = {"position": [0, 0], "rows": ["#"], "color": 255, "strength_train": 0.5, "strength_test": 1.0}


def noise(n: int, channels: int = 3, height: int = 32, width: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(n)
    return torch.randint(0, 256, (n, channels, height, width), generator=generator).byte()


def workshop(seed: int = 0) -> AttackContext:
    train = LabeledImages(noise(2), torch.tensor([0, 1]), ("a", "b"))
    return AttackContext(train, 0, None, seed, nn.Module)


def drawn(image: NDArray[np.float64], patch: dict[str, Any], opacity: float) -> None:
    """Lays one patch over one image (C, H, W), in place."""
    channels, height, width = image.shape
    color = [np.mean(patch["color"])] if channels == 1 else patch["color"]
    for down, line in enumerate(patch["rows"]):
        for right, letter in enumerate(line):
            row, column = (
                (patch["position"][0] + down) % height,
                (patch["position"][1] + right) % width,
            )
            if letter == "#":
                pixel = image[:, row, column]
                image[:, row, column] = (1 - opacity) * pixel + opacity * np.round(color)


def with_one(image: Tensor, patch: dict[str, Any]) -> Tensor:
    values = image.numpy().astype(np.float64)
    drawn(values, patch, patch["strength_train"])
    return torch.from_numpy(values)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 33, 17)], ids=str)
def test_test_images_get_every_patch_at_its_test_opacity(shape: tuple[int, int, int]) -> None:
    """No other pixel changes."""
    images = noise(4, *shape)
    found = AdaptivePatch(patches=PATCHES)(images)
    for image, triggered in zip(images, found, strict=True):
        values = image.numpy().astype(np.float64)
        for patch in PATCHES:
            drawn(values, patch, patch["strength_test"])
        assert np.abs(triggered.numpy() - values).max() <= 0.501


def test_the_adaptive_patch_preset_has_the_opacities_of_the_paper() -> None:
    """Four patches in training; test images get two of them at full opacity."""
    assert [patch["strength_train"] for patch in PATCHES] == [0.5, 0.2, 0.5, 0.3]
    assert sorted(patch["strength_test"] for patch in PATCHES) == [0, 0, 1, 1]


def which_patch(originals: Tensor, triggered: Tensor) -> list[int]:
    """The number of the one patch that each image carries; none or two fail."""
    numbers = []
    for image, made in zip(originals, triggered, strict=True):
        off = [(made - with_one(image, patch)).abs().max() for patch in PATCHES]
        fitting = [number for number, value in enumerate(off) if value <= 0.501]
        assert len(fitting) == 1
        numbers += fitting
    return numbers


def test_each_training_image_gets_one_patch() -> None:
    """Poison and covers get one patch each at its training opacity, in equal shares; the order
    differs between poison and covers and between seeds."""
    trigger, images, labels = AdaptivePatch(patches=PATCHES), noise(22), torch.zeros(22).long()
    orders = [
        which_patch(images, made(images, labels, workshop(seed)))
        for made, seed in ((trigger.poisoned, 0), (trigger.make_covers, 0), (trigger.poisoned, 1))
    ]
    for order in orders:
        assert sorted(order.count(number) for number in range(4)) == [5, 5, 6, 6]
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_overlapping_patches_are_applied_in_order() -> None:
    """With opacity 0.5, a pixel of 0 first moves halfway to the 200 of one patch and then halfway
    to the 100 of the next."""
    over = [DOT | {"color": 200, "strength_test": 0.5}, DOT | {"color": 100, "strength_test": 0.5}]
    black = torch.zeros(1, 1, 2, 2, dtype=torch.uint8)
    assert AdaptivePatch(patches=over)(black).flatten().tolist() == [100, 0, 0, 0]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"position": [0]}, r"patches\[0\]\.position` must be \[row, column\]"),
        ({"position": [0, 0.5]}, r"patches\[0\]\.position` must be a whole number"),
        ({"position": [-1, 0], "rows": ["#", "#"]}, "extends past the lower or right edge"),
        ({"position": [0, -2], "rows": ["###"]}, "extends past the lower or right edge"),
        ({"rows": []}, "strings of equal length"),
        ({"rows": ["#.", "#"]}, "strings of equal length"),
        ({"rows": [".."]}, "at least once"),
        ({"rows": ["#x"]}, "got"),
        ({"color": 256}, r"trigger\.color"),
        ({"strength_train": 1.1}, r"patches\[0\]\.strength_train` must satisfy 0 <= .* <= 1"),
        ({"strength_train": 0}, "`strength_train` above 0"),
        ({"strength_test": 0}, "`strength_test` above 0"),
        ({"strength_test": float("nan")}, r"patches\[0\]\.strength_test"),
        ({"strength_tset": 1}, "Did you mean 'strength_test'"),
    ],
    ids=str,
)
def test_a_bad_patch_is_refused_with_its_index_and_key(change: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        AdaptivePatch(patches=[DOT | change])


@pytest.mark.parametrize("patches", [[], {}, ["#"], [{"position": [0, 0]}]], ids=str)
def test_anything_but_a_list_of_patches_is_refused(patches: Any) -> None:
    """Refused are an empty list, a mapping, text, and an incomplete patch."""
    with pytest.raises(ConfigError, match=r"trigger\.patches"):
        AdaptivePatch(patches=patches)


def test_a_patch_larger_than_the_image_is_refused() -> None:
    """The error gives the image's size."""
    with pytest.raises(ConfigError, match="4x32 pixels"):
        AdaptivePatch(patches=PATCHES)(noise(1, 3, 4, 32))
