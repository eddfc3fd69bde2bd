"""The label-consistent attack on a linear network by NumPy, and the authors' mark."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from backdoor_lab.attacks.base import AttackContext
from backdoor_lab.attacks.label_consistent import LabelConsistent
from backdoor_lab.core.types import LabeledImages
from tests.helpers.contexts import linear
from tests.helpers.mutations import Mutation

FILE = "attacks/label_consistent.py"
MUTATIONS = [
    Mutation(FILE, "change + self._step(", "change - self._step(", "the sign of the step"),
    Mutation(FILE, "self._step(surrogate, start + change, labels)",
             "self._step(surrogate, start.clone(), labels)", "the slope at the clean image"),
    Mutation(FILE, "gradient.sign() if", "gradient if", "the gradient, not its sign"),
    Mutation(FILE, "else gradient / _length(gradient)", "else gradient", "l2 steps of any length"),
    Mutation(FILE, "change.clamp(-self.eps, self.eps)", "change", "no bound in linf"),
    Mutation(FILE, "change * (self.eps / _length(change)).clamp(max=1)", "change",
             "no bound in l2"),
    Mutation(FILE, "clamp(max=1)", "clamp(max=9)", "small perturbations are scaled up"),
    Mutation(FILE, "(start + change).clamp(0, 255) - start", "change", "values leave 0..255"),
    Mutation(FILE, "((1, -1, -1), (-1, 1, -1), (1, -1, 1))",
             "((1, -1, 1), (-1, 1, -1), (1, -1, 1))", "the mark"),
    Mutation(FILE, "right = left.flip(1)", "right = left", "the right corners are not mirrored"),
    Mutation(FILE, "mark[:-SIDE], mark[:, :-SIDE] = 0, 0", "mark[:-SIDE] = 0", "two lower corners"),
]  # fmt: skip
SHAPE, STEPS = (3, 8, 7), 6
NET = linear(168, 3, seed=5)
LABELS = torch.tensor([1] * 9)
# The authors' bottom-right mark: rows and columns count from the lower right corner.
LOWER_RIGHT = {(-1, -1): 1, (-1, -2): -1, (-1, -3): 1, (-2, -1): -1, (-2, -2): 1, (-2, -3): -1,
               (-3, -1): 1, (-3, -2): -1, (-3, -3): -1}  # fmt: skip
UPPER_LEFT = {(0, 0): 1, (0, 1): -1, (0, 2): -1, (1, 0): -1, (1, 1): 1, (1, 2): -1, (2, 0): 1,
              (2, 1): -1, (2, 2): 1}  # fmt: skip


def pictures() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (9, *SHAPE), generator=generator, dtype=torch.uint8)


def context() -> AttackContext:
    train = LabeledImages(pictures(), LABELS, ("a", "b", "c"))
    return AttackContext(train, 1, None, 0, lambda: NET)


def slope(images: NDArray[np.float64]) -> NDArray[np.float64]:
    """The gradient of each image's cross-entropy."""
    w, b = (each.detach().double().numpy() for each in (NET.body.weight, NET.body.bias))
    z = images.reshape(len(images), -1) / 255 @ w.T + b
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    return ((p - np.eye(3)[1]) @ w / 255).reshape(images.shape)


def perturbed(norm: str, eps: float, step: float) -> NDArray[np.float64]:
    clean = pictures().double().numpy()
    change = np.zeros_like(clean)
    for _ in range(STEPS):
        g = slope(clean + change)
        if norm == "linf":
            change = (change + step * np.sign(g)).clip(-eps, eps)
        else:
            change = (
                change + step * g / np.linalg.norm(g.reshape(9, -1), axis=1)[:, None, None, None]
            )
            size = np.linalg.norm(change.reshape(9, -1), axis=1)[:, None, None, None]
            change = change * np.minimum(1, eps / size)
        change = (clean + change).clip(0, 255) - clean
    return clean + np.trunc(change)


@pytest.mark.parametrize(
    ("norm", "eps", "step"), [("linf", 8, 1.5), ("l2", 150, 60), ("l2", 500, 60)]
)
def test_perturbations_follow_the_paper(norm: str, eps: float, step: float) -> None:
    trigger = LabelConsistent(norm=norm, eps=eps, steps=STEPS, step_size=step)
    found = trigger.perturbed(pictures(), LABELS, context()).double().numpy()
    assert np.mean(found != perturbed(norm, eps, step)) < 0.005


@pytest.mark.parametrize(("corners", "strength"), [("all", 255), ("all", 40), ("lower_right", 255)])
def test_corner_patterns_equal_those_of_the_authors_code(corners: str, strength: float) -> None:
    images = pictures()
    mark = np.zeros(SHAPE[1:])
    for (row, column), value in LOWER_RIGHT.items():
        mark[row, column] = value
        if corners == "all":
            mark[row, -1 - column] = value
    if corners == "all":
        for (row, column), value in UPPER_LEFT.items():
            mark[row, column] = mark[row, -1 - column] = value
    expected = (images.double().numpy() + strength * mark).clip(0, 255)
    trigger = LabelConsistent(
        eps=0, corners=corners, strength_train=strength, strength_test=strength
    )
    assert np.array_equal(trigger(images).numpy(), expected)
    assert np.array_equal(trigger.poisoned(images, LABELS, context()).numpy(), expected)


def test_defaults_are_among_the_settings_of_the_paper() -> None:
    trigger = LabelConsistent()
    assert (trigger.norm, trigger.eps, trigger.corners) == ("linf", 8, "all")
    assert (trigger.strength_train, trigger.strength_test) == (255, 255)
