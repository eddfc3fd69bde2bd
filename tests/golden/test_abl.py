"""ABL equals the published method (Li et al. 2021): isolation training (equation 3), selection of
the 1 % of images with the lowest loss, and, as in the authors' code (bboylyg/ABL at 3fd736c),
training on the other images and unlearning."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from backdoor_lab.defenses.abl import ABL
from backdoor_lab.defenses.abl_unlearning import ABLUnlearning
from backdoor_lab.defenses.context import DefenseContext
from tests.helpers.contexts import context
from tests.helpers.mutations import Mutation
from tests.helpers.numpy_sgd import (
    Array,
    NumpySGD,
    TwoLayers,
    cross_entropy_gradient,
    drawn_images,
    drawn_weights,
    forward,
    losses,
    weights_of,
)

ABL_FILE = "defenses/abl.py"
REPAIR_FILE = "defenses/abl_unlearning.py"
MUTATIONS = [
    Mutation(ABL_FILE, "(mean.detach() - gamma).sign()", "(gamma - mean.detach()).sign()",
             "the sign of the loss is reversed"),
    Mutation(ABL_FILE, "nesterov=True", "nesterov=False", "no Nesterov momentum"),
    Mutation(ABL_FILE, "passes.over(order,", "passes.over(in_random_order(order, draw),",
             "the order changes in every epoch"),
    Mutation(ABL_FILE, "int(share * len(losses))", "round(share * len(losses))",
             "the number of isolated images is rounded to the nearest"),
    Mutation(ABL_FILE, "losses.sort(stable=True)", "losses.sort(stable=True, descending=True)",
             "the highest losses are isolated"),
    Mutation(REPAIR_FILE, "3 * number < 2 * epochs", "3 * number < epochs",
             "the learning rate drops after a third of the epochs"),
    Mutation(REPAIR_FILE, "self.isolation.lr / 10", "self.isolation.lr",
             "the learning rate does not drop"),
    Mutation(REPAIR_FILE, "self.unlearning_lr, opposed", "self.unlearning_lr, F.cross_entropy",
             "the loss of isolated images decreases"),
    Mutation(REPAIR_FILE, "unlearning_lr: float = 0.0005", "unlearning_lr: float = 0.005",
             "unlearning is ten times as fast"),
]  # fmt: skip
BATCH, MOMENTUM, DECAY = 128, 0.9, 1e-4
PIXELS, HIDDEN, CLASSES = 4, 5, 3
IMAGES, LABELS = drawn_images(260, PIXELS, CLASSES, seed=1)
START = drawn_weights(PIXELS, HIDDEN, CLASSES, seed=2)


def given() -> DefenseContext:
    """A network of two layers and 260 images, so that an epoch has batches of 128, 128 and 4."""
    return context(
        torch.from_numpy(IMAGES), torch.from_numpy(LABELS), fresh=lambda _: TwoLayers(START),
        network=TwoLayers(START), classes=CLASSES,
    )  # fmt: skip


def order(n: int, generator: torch.Generator) -> Array:
    """The order that the method draws, computed with torch because numpy cannot repeat its random
    numbers."""
    return torch.randperm(n, generator=generator).numpy()


def isolated(gamma: float, epochs: int) -> list[Array]:
    """The weights after isolation training: SGD with learning rate 0.1 and Nesterov momentum on
    sign(L - γ) L, with the same batches in every epoch."""
    sgd = NumpySGD(START, MOMENTUM, DECAY, nesterov=True)
    everything = order(len(LABELS), given().generator("isolation", "order"))  # type: ignore[arg-type]
    for _ in range(epochs):
        for first in range(0, len(everything), BATCH):
            where = everything[first : first + BATCH]
            loss = losses(forward(sgd.weights, IMAGES[where])[2], LABELS[where]).mean()
            sign = 1.0 if loss > gamma else -1.0
            gradient = cross_entropy_gradient(sgd.weights, IMAGES[where], LABELS[where])
            sgd.step([sign * each for each in gradient], lr=0.1)
    return sgd.weights


def agree(found: list[Array], expected: list[Array]) -> None:
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12)


# The first two updates use the first two batches. If γ is above the loss, the loss increases.
@pytest.mark.parametrize("gamma", [0.5, 5.0])
@pytest.mark.parametrize("epochs", [1, 2])
def test_isolation_updates_follow_the_published_loss(gamma: float, epochs: int) -> None:
    network, found = ABL(gamma=gamma, epochs=epochs).ascended(given())
    expected = isolated(gamma, epochs)
    agree(weights_of(network), expected)
    assert not np.allclose(expected[0], START[0], atol=1e-3)
    np.testing.assert_allclose(found.numpy(), losses(forward(expected, IMAGES)[2], LABELS))


def test_the_images_with_the_lowest_losses_are_isolated_and_their_number_is_rounded_down() -> None:
    """Two of 260 images are isolated: int(0.01 · 260), as in the authors' code."""
    everything = torch.arange(len(LABELS))
    rating = ABL(epochs=2).score_images(given(), everything)
    expected = losses(forward(isolated(0.5, 2), IMAGES)[2], LABELS)
    np.testing.assert_allclose(rating.scores.numpy(), -expected)
    assert rating.flagged is not None
    assert set(rating.flagged.nonzero().flatten().tolist()) == set(np.argsort(expected)[:2])


def test_training_and_unlearning_follow_the_published_schedule() -> None:
    """After isolation, the model is trained on the other images with learning rate 0.1 for two
    thirds of the epochs and 0.01 for the last third. Then the loss of the isolated images is
    increased with rate 5e-4. Training and unlearning share one optimizer."""
    network, notes = ABLUnlearning(epochs=1, training_epochs=3).repair(given())
    assert notes == {"isolated": 2, "of": 260, "epochs": [1, 3]}
    start = isolated(0.5, 1)
    ranked = np.argsort(losses(forward(start, IMAGES)[2], LABELS))
    bad, good = ranked[:2], np.sort(ranked[2:])
    sgd = NumpySGD(start, MOMENTUM, DECAY, nesterov=True)
    draw = given().generator("training on", "order")  # type: ignore[arg-type]
    for lr in (0.1, 0.1, 0.01):
        visited = good[order(len(good), draw)]
        for first in range(0, len(visited), BATCH):
            where = visited[first : first + BATCH]
            sgd.step(cross_entropy_gradient(sgd.weights, IMAGES[where], LABELS[where]), lr)
    for _ in range(4):
        gradient = cross_entropy_gradient(sgd.weights, IMAGES[bad], LABELS[bad])
        sgd.step([-each for each in gradient], 0.0005)
    agree(weights_of(network), sgd.weights)
