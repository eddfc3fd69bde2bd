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


def attack_context(seed: int = 0) -> AttackContext:
    train = LabeledImages(noise(2), torch.tensor([0, 1]), ("a", "b"))
    return AttackContext(train, 0, None, seed, nn.Module)


def drawn(image: NDArray[np.float64], patch: dict[str, Any], opacity: float) -> None:
    """Lays one patch over one image (C, H, W), in place."""
    colors = patch["color"] if isinstance(patch["color"], dict) else {"#": patch["color"]}
    places = patch["position"] if isinstance(patch["position"][0], list) else [patch["position"]]
    for top, left in places:
        for down, line in enumerate(patch["rows"]):
            for right, letter in enumerate(line):
                if letter in colors:
                    color = colors[letter]
                    color = np.round(np.mean(color)) if len(image) == 1 else np.array(color)
                    pixel = image[:, (top + down) % 32, (left + right) % 32]
                    pixel += opacity * (color - pixel)


def with_one(image: Tensor, patch: dict[str, Any]) -> Tensor:
    values = image.numpy().astype(np.float64)
    drawn(values, patch, patch["strength_train"])
    return torch.from_numpy(values)


@pytest.mark.parametrize("channels", [1, 3])
def test_test_images_get_every_patch_at_its_test_opacity(channels: int) -> None:
    """No other pixel changes."""
    images = noise(4, channels)
    found = AdaptivePatch(patches=PATCHES)(images)
    for image, triggered in zip(images, found, strict=True):
        values = image.numpy().astype(np.float64)
        for patch in PATCHES:
            drawn(values, patch, patch["strength_test"])
        assert np.abs(triggered.numpy() - values).max() <= 0.501


def which_patch(originals: Tensor, triggered: Tensor) -> list[int]:
    """The number of the one patch that each image carries; none or two fail."""
    numbers = []
    used = [patch for patch in PATCHES if patch["strength_train"]]
    for image, made in zip(originals, triggered, strict=True):
        off = [(made - with_one(image, patch)).abs().max() for patch in used]
        fitting = [number for number, value in enumerate(off) if value <= 0.501]
        assert len(fitting) == 1
        numbers += fitting
    return numbers


def test_each_training_image_gets_one_patch() -> None:
    """Each patch goes, at its training opacity, to an equal share of the images, give or take one.
    Which image gets which patch differs between poison and covers and between seeds."""
    trigger, images, labels = AdaptivePatch(patches=PATCHES), noise(22), torch.zeros(22).long()
    orders = [
        which_patch(images, made(images, labels, attack_context(seed)))
        for made, seed in ((trigger.poisoned, 0), (trigger.make_covers, 0), (trigger.poisoned, 1))
    ]
    for order in orders:
        assert sorted(order.count(number) for number in range(4)) == [5, 5, 6, 6]
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_overlapping_patches_are_applied_in_order() -> None:
    """With opacity 0.5, a pixel of 0 first moves halfway to the 200 of one patch and then halfway
    to the 100 of the next."""
    over = [DOT | {"color": 200, "strength_test": 0.5}, DOT | {"color": 100, "strength_test": 0.5}]
    black = torch.zeros(1, 1, 32, 32, dtype=torch.uint8)
    found = AdaptivePatch(patches=over)(black)
    assert (found[0, 0, 0, 0], found.sum()) == (100, 100)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"position": [0]}, r"patches\[0\]\.position` must be \[row, column\]"),
        ({"position": [0, 0.5]}, r"patches\[0\]\.position` must be a whole number"),
        ({"position": [-1, 0], "rows": ["#", "#"]}, "extends past the lower or right edge"),
        ({"position": [0, -2], "rows": ["###"]}, "extends past the lower or right edge"),
        ({"rows": []}, "strings of equal length"),
        ({"rows": ["#.", "#"]}, "strings of equal length"),
        ({"rows": [".."]}, "at least one pixel"),
        ({"rows": ["#x"]}, "got"),
        ({"rows": ["#"], "color": {"x": 255}}, "with x where the patch covers"),
        ({"rows": ["x"], "color": {"xy": 255}}, "mapping from single letters"),
        ({"rows": ["x"], "color": {".": 255}}, "mapping from single letters"),
        ({"rows": ["x"], "color": {"x": [1, 2]}}, r"trigger\.color"),
        ({"position": [[0, 0], [30]]}, r"must be \[row, column\] or a list of such pairs"),
        ({"position": [[0, 0], [32, 0]]}, r"patches\[0\]\.position"),
        ({"position": [31, 0], "rows": ["#", "#"]}, "edge of 32x32 pixels"),
        ({"color": 256}, r"trigger\.color"),
        ({"strength_train": 1.1}, r"patches\[0\]\.strength_train` must satisfy 0 <= .* <= 1"),
        ({"strength_train": 0}, "at least one patch needs `strength_train` above 0"),
        ({"strength_test": 0}, "at least one patch needs `strength_test` above 0"),
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
    """Cases: an empty list, a mapping, text, and an incomplete patch."""
    with pytest.raises(ConfigError, match=r"trigger\.patches"):
        AdaptivePatch(patches=patches)


def test_a_patch_that_is_never_used_is_refused() -> None:
    with pytest.raises(ConfigError, match="every patch needs `strength_train` or"):
        AdaptivePatch(patches=[DOT, DOT | {"strength_train": 0, "strength_test": 0}])


@pytest.mark.parametrize(("side", "exact"), [(4, "0.391"), (8, "1.56"), (13, "1.49")])
def test_patches_are_refused_if_rounding_changes_an_area_by_more_than_a_quarter(
    side: int, exact: str
) -> None:
    """The error names the patch, the size of the images and the area before rounding."""
    with pytest.raises(
        ConfigError, match=rf"\[\d\]\.rows` .*{side}x40 .* should cover {exact} pixels"
    ):
        AdaptivePatch(patches=PATCHES)(noise(1, 3, side, 40))


def test_a_patch_on_a_non_square_image_is_scaled_by_the_shorter_side() -> None:
    """A patch of 5x5 pixels is halved, rounded to 2x3, and stays in the lower right corner."""
    five = DOT | {"position": [-5, -5], "rows": ["#####"] * 5}
    images = torch.zeros(1, 1, 16, 64, dtype=torch.uint8)
    expected = images.clone()
    expected[:, :, -2:, -3:] = 255
    assert torch.equal(AdaptivePatch(patches=[five])(images), expected)
