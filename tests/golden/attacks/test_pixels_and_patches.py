"""BadNets' pixel and pattern, and patches, by NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from backdoor_lab.attacks.base import Trigger
from backdoor_lab.attacks.patch import Patch
from backdoor_lab.attacks.pattern import Pattern
from backdoor_lab.attacks.pixel import Pixel
from tests.helpers.mutations import Mutation

BASE = "attacks/base.py"
PATCH = "attacks/patch.py"
MUTATIONS = [
    Mutation(BASE, "images[:, :, row, column] = color", "images[:, :, column, row] = color",
             "row and column exchanged"),
    Mutation(BASE, "each + margin if each >= 0 else each - margin",
             "each - margin if each >= 0 else each + margin", "the margin moves outward"),
    Mutation("attacks/pattern.py", "[(-1, -1), (-1, -3), (-2, -2), (-3, -1)]",
             "[(-1, -1), (-1, -3), (-2, -2), (-3, -3)]", "another pattern"),
    Mutation(PATCH, "(row == column) | (row + column == size - 1)", "(row == column)", "half an x"),
    Mutation(PATCH, "(row == 0) | (column == 0)", "(row == 0) | (column == 1)", "another l"),
    Mutation(PATCH, "(row + column) % 2 == 0", "(row + column) % 2 == 1", "the other checker"),
    Mutation(PATCH, "under * (1 - cover) + cover * color", "under + cover * color", "added"),
    Mutation(PATCH, "else room + 1 + position", "else room + position", "one pixel too far"),
]  # fmt: skip
SHAPE = (3, 10, 12)
DRAWN = {
    "square": ["###", "###", "###"],
    "x": ["#.#", ".#.", "#.#"],
    "l": ["###", "#..", "#.."],
    "checker": ["#.#", ".#.", "#.#"],
}


def pictures() -> Tensor:
    """Without the trigger's color, 255."""
    generator = torch.Generator().manual_seed(7)
    return torch.randint(0, 250, (4, *SHAPE), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("trigger", "pixels"),
    [
        (Pixel(), [(9, 11)]),
        (Pixel(margin=2), [(7, 9)]),
        (Pixel(position=(1, 4), margin=2), [(3, 6)]),
        (Pattern(), [(9, 11), (9, 9), (8, 10), (7, 11)]),
        (Pattern(margin=1), [(8, 10), (8, 8), (7, 9), (6, 10)]),
    ],
)
def test_pixels_are_set_to_the_color(trigger: Trigger, pixels: list[tuple[int, int]]) -> None:
    expected = pictures().numpy().copy()
    for row, column in pixels:
        expected[:, :, row, column] = 255
    assert np.array_equal(trigger(pictures()).numpy(), expected)


@pytest.mark.parametrize("shape", DRAWN)
@pytest.mark.parametrize(
    ("position", "corner"), [((-1, -1), (7, 9)), ((2, 3), (2, 3)), ((-4, -2), (4, 8))]
)
@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_patches_are_mixed_into_the_image(
    shape: str, position: tuple[int, int], corner: tuple[int, int], strength: float
) -> None:
    expected = pictures().double().numpy()
    for i, line in enumerate(DRAWN[shape]):
        for j, mark in enumerate(line):
            if mark == "#":
                at = (slice(None), slice(None), corner[0] + i, corner[1] + j)
                color = np.array([250, 20, 100])
                expected[at] = (1 - strength) * expected[at] + strength * color
    trigger = Patch(shape=shape, positions=position, color=[250, 20, 100], strength=strength)
    assert np.abs(trigger(pictures()).double().numpy() - expected).max() < 0.501


def test_the_shapes_x_and_l_of_tran_et_al_have_five_and_three_pixels() -> None:
    """A pixel and its four diagonal neighbors; a pixel and its right and lower neighbors."""
    black = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    for shape, size, expected in (("x", 3, 5), ("l", 2, 3)):
        found = Patch(shape=shape, size=size)(black)
        assert int(found.ne(0).sum()) == expected
