"""Adaptive-Patch's poison, covers and test images by NumPy, from the authors' code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from backdoor_lab.attacks.adaptive_patch import AdaptivePatch
from backdoor_lab.attacks.base import AttackContext
from backdoor_lab.core.types import LabeledImages
from tests.helpers.mutations import Mutation
from tests.helpers.project import CONF

FILE = "attacks/adaptive_patch.py"
DRAWING = "attacks/drawing.py"
MUTATIONS = [
    Mutation(FILE, "opacity * mask * (color - values)", "opacity * mask * color", "added"),
    Mutation(FILE, "opacity * mask * (color - values)", "opacity * (color - values)", "no mask"),
    Mutation(FILE, "in self.test.items()", "in self.train.items()", "training patches in tests"),
    Mutation(FILE, "% len(self.train)", "% 2", "only two patches in training"),
    Mutation(DRAWING, "-first - old", "-first - old + 2", "two pixels from the lower edge"),
    Mutation(DRAWING, "(torch.arange(new) + 0.5)", "torch.arange(new).flip(0)", "upside down"),
    Mutation(DRAWING, "for position in self.positions:", "for position in self.positions[:1]:",
             "one of several places"),
    Mutation(DRAWING, "return min(height, width) / SIDE", "return 1.0", "not scaled"),
]  # fmt: skip
PATCHES: Any = OmegaConf.to_container(OmegaConf.load(CONF / "trigger/adaptive_patch.yaml").patches)
OPACITIES = {"phoenix": 0.5, "firefox": 0.2, "badnet": 0.5, "trojan": 0.3}
AREAS = {"phoenix": 25, "firefox": 140, "badnet": 36, "trojan": 64, "phoenix2": 50}
LOGO = np.array([180.0, 204, 244])[:, None, None]


def layers() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Mask (32, 32) and colors (3, 32, 32) of each patch, in the places of the authors' files."""
    masks = {name: np.zeros((32, 32)) for name in AREAS}
    colors = {name: np.zeros((3, 32, 32)) for name in AREAS}
    masks["phoenix"][27:, 27:] = 1
    masks["phoenix2"][27:] = np.isin(np.arange(32), [0, 1, 2, 3, 4, 27, 28, 29, 30, 31])
    colors["phoenix"] += LOGO
    colors["phoenix2"] += LOGO
    colors["firefox"] += np.array([192.0, 114, 82])[:, None, None]
    for row, line in enumerate(PATCHES[1]["rows"]):
        masks["firefox"][1 + row, 18:31] = [letter == "#" for letter in line]
    checker = np.array([[255.0, 0, 255], [0, 255, 0], [255, 0, 255]])
    for rows in (slice(0, 3), slice(29, 32)):
        for columns in (slice(0, 3), slice(29, 32)):
            masks["badnet"][rows, columns], colors["badnet"][:, rows, columns] = 1, checker
    masks["trojan"][21:29, 21:29] = 1
    for row, line in enumerate(PATCHES[4]["rows"]):
        for column, letter in enumerate(line):
            colors["trojan"][:, 21 + row, 21 + column] = PATCHES[4]["color"][letter]
    return {name: (masks[name], colors[name]) for name in AREAS}


def blended(images: np.ndarray, name: str, opacity: float, factor: int = 1) -> np.ndarray:
    mask, color = (np.kron(part, np.ones((factor, factor))) for part in layers()[name])
    return images + opacity * mask * (color - images)


def pictures(n: int, side: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randint(0, 256, (n, 3, side, side), generator=generator).byte()


def test_patch_areas_and_opacities_match_the_authors_code() -> None:
    masks = {name: mask for name, (mask, _) in layers().items()}
    assert {name: mask.sum() for name, mask in masks.items()} == AREAS
    assert np.maximum(masks["phoenix2"], masks["badnet"]).sum() == 68
    trigger = AdaptivePatch(patches=PATCHES)
    assert [*trigger.train.values()] == [*OPACITIES.values()]
    assert [*trigger.test.values()] == [1, 1]
    found = [drawing.on(3, 32, 32)[1].sum() for drawing in trigger.drawings]
    assert found == [25, 140, 50, 36, 64]


@pytest.mark.parametrize("factor", [1, 2])
def test_test_images_get_the_logo_patch_and_the_checkerboards_in_the_four_corners(
    factor: int,
) -> None:
    """The checkerboards cover the logo where they overlap. All patches are twice as large on images
    of 64x64 pixels."""
    images = pictures(3, 32 * factor)
    expected = blended(images.double().numpy(), "phoenix2", 1, factor)
    expected = blended(expected, "badnet", 1, factor)
    assert (AdaptivePatch(patches=PATCHES)(images).numpy() == expected).all()


def test_poison_and_cover_images_get_one_of_four_patches_in_equal_shares() -> None:
    images, labels = pictures(24, 32), torch.zeros(24).long()
    context = AttackContext(LabeledImages(images, labels, ("a", "b")), 1, None, 0, nn.Module)
    trigger, clean = AdaptivePatch(patches=PATCHES), images.double().numpy()
    expected = {name: blended(clean, name, opacity) for name, opacity in OPACITIES.items()}
    for make in (trigger.poisoned, trigger.make_covers):
        found = make(images, labels, context).double().numpy()
        fits = [
            [name for name in OPACITIES if np.abs(rows - expected[name][n]).max() < 0.51]
            for n, rows in enumerate(found)
        ]
        assert {name: fits.count([name]) for name in OPACITIES} == dict.fromkeys(OPACITIES, 6)


@pytest.mark.parametrize("side", [16, 28, 40, 224])
def test_scaled_patches_keep_their_relative_position_and_area(side: int) -> None:
    """The center of a patch moves by less than one pixel; its area changes by at most a quarter."""
    for drawing, area in zip(AdaptivePatch(patches=PATCHES).drawings, (25, 140, 50, 36, 64),
                             strict=True):  # fmt: skip
        mask = drawing.on(3, side, side)[1].numpy()
        assert mask.sum() == pytest.approx(area * (side / 32) ** 2, rel=0.25)
        place, centers = (
            np.argwhere(mask).mean(axis=0),
            np.argwhere(drawing.on(3, 32, 32)[1].numpy()),
        )
        assert np.abs((place + 0.5) * 32 / side - centers.mean(axis=0) - 0.5).max() < 32 / side
