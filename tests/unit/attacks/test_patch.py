"""The patch trigger: shapes, positions, color and opacity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from backdoor_lab.attacks.patch import Patch
from backdoor_lab.attacks.pixel import Pixel
from backdoor_lab.core.errors import ConfigError


def black(channels: int = 3, height: int = 6, width: int = 8) -> Tensor:
    return torch.zeros(1, channels, height, width, dtype=torch.uint8)


def noise(n: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 3, 9, 11), dtype=torch.uint8, generator=generator)


def drawn(**options: Any) -> list[str]:
    """What the trigger paints on black, '#' for a pixel that is set, upper left 3 x 4 pixels."""
    image = Patch(positions=(0, 0), **options)(black(1))[0, 0, :3, :4]
    return ["".join("#" if value else "." for value in row) for row in image.tolist()]


def test_shapes_match_those_drawn_by_hand() -> None:
    """x of size 3 and l of size 2 are those of Tran, Li and Madry."""
    assert drawn(shape="square") == ["###.", "###.", "###."]
    assert drawn(shape="x") == ["#.#.", ".#..", "#.#."]
    assert drawn(shape="l", size=2) == ["##..", "#...", "...."]
    assert drawn(shape="l", size=3) == ["###.", "#...", "#..."]
    assert drawn(shape="checker") == ["#.#.", ".#..", "#.#."]
    assert drawn(shape="checker", size=[2, 4]) == ["#.#.", ".#.#", "...."]
    assert drawn(shape="square", size=[1, 4]) == ["####", "....", "...."]


@pytest.mark.parametrize("position", [(-1, -1), (0, 0), (3, -2), (-9, 10)])
@pytest.mark.parametrize("color", [255, [10, 200, 30]])
def test_a_patch_of_one_pixel_equals_the_pixel_trigger(
    position: tuple[int, int], color: Any
) -> None:
    patch = Patch(size=1, positions=position, color=color)
    assert torch.equal(patch(noise()), Pixel(position=position, color=color)(noise()))


@pytest.mark.parametrize(
    ("position", "rows", "columns"),
    [((0, 0), (0, 2), (0, 3)), ((-1, -1), (4, 6), (5, 8)), ((-2, 1), (3, 5), (1, 4)),
     ((4, 5), (4, 6), (5, 8)), ((-5, -6), (0, 2), (0, 3))],
)  # fmt: skip
def test_positions_are_measured_from_the_upper_left_or_the_lower_right_corner(
    position: tuple[int, int], rows: tuple[int, int], columns: tuple[int, int]
) -> None:
    """Negative numbers count from the lower or right edge."""
    painted = Patch(size=[2, 3], positions=position)(black())[0, 0]
    expected = torch.zeros(6, 8, dtype=torch.uint8)
    expected[slice(*rows), slice(*columns)] = 255
    assert torch.equal(painted, expected)


def test_only_pixels_of_the_patch_change() -> None:
    """The patch is at several positions at once; no pixel outside them changes."""
    images = noise()
    made = Patch(size=2, positions=[(0, 0), (-1, -1)], color=[1, 2, 3])(images)
    inside = torch.zeros(9, 11, dtype=torch.bool)
    inside[:2, :2] = inside[-2:, -2:] = True
    assert torch.equal(made[:, :, ~inside], images[:, :, ~inside])
    assert torch.equal(made[0, :, inside], torch.tensor([1, 2, 3]).byte()[:, None].expand(3, 8))


def test_opacity_mixes_color_and_image() -> None:
    """The result is (1 - a) x + a k, rounded: 150.5, the mean of 201 and 100, becomes 150. Gray
    images get the mean color."""
    images = black().fill_(100)
    half = Patch(size=1, color=201, strength=0.5)(images)
    assert half[0, :, -1, -1].tolist() == [150, 150, 150]
    quarter = Patch(size=1, color=[200, 0, 100], strength=0.25)(images)
    assert quarter[0, :, -1, -1].tolist() == [125, 75, 100]
    grey = Patch(size=1, color=[0, 60, 120])(black(1))
    assert grey[0, 0, -1, -1] == 60


def test_the_transparency_of_a_patch_image_is_respected(tmp_path: Path) -> None:
    """Opaque pixels replace those of the image, transparent ones leave them unchanged, others mix
    with them; the shape masks the patch image."""
    pixels = np.array([[[250, 0, 0, 255], [9, 9, 9, 0]], [[0, 200, 0, 51], [0, 0, 90, 255]]])
    path = tmp_path / "patch.png"
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    images = black().fill_(100)
    made = Patch(size=2, positions=(0, 0), image=str(path))(images)[0]
    assert made[:, 0, 0].tolist() == [250, 0, 0]
    assert made[:, 0, 1].tolist() == [100, 100, 100]
    assert made[:, 1, 0].tolist() == [80, 120, 80]
    assert made[:, 1, 1].tolist() == [0, 0, 90]
    cut = Patch(shape="l", size=2, positions=(0, 0), image=str(path))(images)[0]
    assert torch.equal(cut[:, :, 0], made[:, :, 0])
    assert cut[:, 1, 1].tolist() == [100, 100, 100]


@pytest.mark.parametrize("position", [(0, 7), (5, 0), (-6, -1), (0, -8), (-1, 100)])
def test_a_patch_outside_the_image_is_refused(position: tuple[int, int]) -> None:
    """The error names the patch's size and position and the image's size."""
    with pytest.raises(ConfigError, match=r"patch of 2x2 pixels at .* images of 6x8 pixels"):
        Patch(size=2, positions=position)(black())


@pytest.mark.parametrize(
    "wrong",
    [{"shape": "star"}, {"size": 0}, {"size": [2]}, {"size": [1, 2, 3]}, {"size": 2.5},
     {"shape": "x", "size": [2, 3]}, {"color": 256}, {"color": [1, 2]}, {"positions": []},
     {"positions": [[1, 2, 3]]}, {"positions": [0.5, 1]}, {"positions": 3}, {"strength": 0},
     {"strength": 1.5}, {"image": "no/such/file.png"}],
    ids=str,
)  # fmt: skip
def test_bad_options_are_refused_and_named_in_the_error(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="`trigger"):
        Patch(**wrong)
