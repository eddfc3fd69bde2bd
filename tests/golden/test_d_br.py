"""D-BR equals the method of Chen, Wu and Wang 2022 as implemented in the authors' code
(SCLBD/Effective_backdoor_defense at 63fda0e): first model, consistency, selection, unlearning.

The authors' code was run once by hand on arrays, in 2026-11: its thresholds and its loss of the
fine-tuning equal ours in every digit. It rotates and shifts PIL images with torchvision. The result
differs from ours in 24 of 204,800 pixels, on the border between two source pixels.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from backdoor_lab.defenses.context import DefenseContext
from backdoor_lab.defenses.d_br import DBR, SETTINGS, sensitivity, separated, transformed
from backdoor_lab.defenses.passes import Passes
from tests.helpers.contexts import context, hidden
from tests.helpers.mutations import Mutation
from tests.helpers.numpy_sgd import (
    Array,
    NumpySGD,
    TwoLayers,
    cross_entropy_gradient,
    drawn_images,
    drawn_weights,
    features_gradient,
    forward,
    weights_of,
)

FILE = "defenses/d_br.py"
MUTATIONS = [
    Mutation(FILE, "lr * (1 + math.cos(", "lr * (1 - math.cos(", "the cosine schedule is reversed"),
    Mutation(FILE, "self.first_epochs + number", "number", "the fine-tuning restarts the schedule"),
    Mutation(FILE, "F.normalize(centers, dim=1)", "centers", "class centers are not normalized"),
    Mutation(FILE, "masked_fill(own, 0).mean()", "masked_fill(own, 0).sum()",
             "pairs are summed, not averaged"),
    Mutation(FILE, "1 - (1 - module.momentum) ** 2", "module.momentum",
             "each batch counts once in the statistics"),
    Mutation(FILE, ".square().mean(dim=1)", ".abs().mean(dim=1)",
             "consistency is the mean absolute change"),
    Mutation(FILE, "SHIFT = 0.2", "SHIFT = 0.1", "the largest shift is 0.1"),
    Mutation(FILE, "sampled(turned, ", "sampled(images.float(), ",
             "the shift replaces the rotation"),
    Mutation(FILE, "max(1, int(clean_ratio * n))", "max(1, round(clean_ratio * n))",
             "the number of clean images is rounded to the nearest"),
    Mutation(FILE, "(change >= high)", "(change > high)",
             "changes equal to the threshold are not poison"),
    Mutation(FILE, "((bad, -1.0, opposed), (good, 1.0, F.cross_entropy))",
             "((good, -1.0, opposed), (bad, 1.0, F.cross_entropy))", "clean images are unlearned"),
    Mutation(FILE, "weight_decay=5e-4", "weight_decay=1e-4", "the weight decay is too small"),
]  # fmt: skip
BATCH, MOMENTUM, DECAY = 128, 0.9, 5e-4
PIXELS, HIDDEN, CLASSES = 4, 5, 3
IMAGES, LABELS = drawn_images(200, PIXELS, CLASSES, seed=1)
START = drawn_weights(PIXELS, HIDDEN, CLASSES, seed=2)


def given() -> DefenseContext:
    """A network of two layers and 200 images, so that an epoch has batches of 128 and 72."""
    return context(
        torch.from_numpy(IMAGES), torch.from_numpy(LABELS), fresh=lambda _: TwoLayers(START),
        network=TwoLayers(START), classes=CLASSES,
    )  # fmt: skip


def batches(where: Array, generator: torch.Generator) -> list[Array]:
    """The batches of a shuffled pass, computed with torch because numpy cannot repeat its random
    numbers."""
    visited = where[torch.randperm(len(where), generator=generator).numpy()]
    return [visited[first : first + BATCH] for first in range(0, len(visited), BATCH)]


def agree(found: list[Array], expected: list[Array]) -> None:
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12)


def center_gradient(features: Array, labels: Array) -> Array:
    """The gradient, with respect to the features (n, h), of (1/K²) Σ_{i≠j} cos(c_i, c_j), where c_i
    is the mean feature of the i-th of the K classes in the batch."""
    classes = np.unique(labels)
    centers = np.stack([features[labels == y].mean(axis=0) for y in classes])
    norms = np.linalg.norm(centers, axis=1, keepdims=True)
    units = centers / norms
    along = 2 / len(classes) ** 2 * (units.sum(axis=0) - units)
    tangent = (along - units * (units * along).sum(axis=1, keepdims=True)) / norms
    found = np.zeros_like(features)
    for each, y in zip(tangent, classes, strict=True):
        found[labels == y] = each / (labels == y).sum()
    return found


def first_model(first_epochs: int, tuning_epochs: int) -> list[Array]:
    """Trains the first model by SGD without Nesterov momentum, with rate 0.01 (1 + cos(π t / 100))
    / 2 in epoch t. The fine-tuning continues this schedule and keeps the momentum, but never
    updates the last layer."""
    sgd = NumpySGD(START, MOMENTUM, DECAY)
    draw = given().generator("distinguishing", "order")  # type: ignore[arg-type]
    for epoch in range(first_epochs + tuning_epochs):
        lr = 0.01 * (1 + math.cos(math.pi * epoch / 100)) / 2
        for where in batches(np.arange(len(LABELS)), draw):
            images, labels = IMAGES[where], LABELS[where]
            if epoch < first_epochs:
                sgd.step(cross_entropy_gradient(sgd.weights, images, labels), lr)
            else:
                wanted = center_gradient(forward(sgd.weights, images)[1], labels)
                sgd.step(features_gradient(sgd.weights, images, wanted), lr)
    return sgd.weights


def test_the_first_model_is_trained_with_cross_entropy_and_a_cosine_learning_rate() -> None:
    """The weights are compared after one epoch and after two epochs, each of two batches."""
    for epochs in (1, 2):
        network = DBR(first_epochs=epochs, tuning_epochs=0).distinguishing(given())
        agree(weights_of(network), first_model(epochs, 0))


def test_fine_tuning_equals_gradient_descent_on_the_similarity_of_class_centers() -> None:
    """The weights are compared after two epochs of training and ten of fine-tuning, the
    defaults."""
    network = DBR().distinguishing(given())
    expected = first_model(2, 10)
    agree(weights_of(network), expected)
    assert not np.allclose(expected[0], first_model(2, 0)[0], atol=1e-4)


def test_each_batch_of_the_fine_tuning_counts_twice_in_the_running_statistics() -> None:
    """The update r ← 0.9 r + 0.1 m occurs once per batch in the first epoch and twice in the
    fine-tuning. The learning rate is 0, so that only the statistics change."""
    images, labels = drawn_images(100, PIXELS, CLASSES)
    start = hidden(PIXELS, CLASSES)
    bare = context(
        torch.from_numpy(images), torch.from_numpy(labels), fresh=lambda _: start, classes=CLASSES
    )
    layer = start.body[0]
    weight, bias = (each.detach().double().numpy() for each in (layer.weight, layer.bias))
    mean = (images.reshape(100, -1) / 255 @ weight.T + bias).mean(axis=0)
    network = DBR(first_lr=0, first_epochs=1, tuning_epochs=1).distinguishing(bare)
    running = 0.1 * mean
    for _ in range(2):
        running = 0.9 * running + 0.1 * mean
    found = network.get_buffer("body.1.running_mean").double().numpy()
    np.testing.assert_allclose(found, running, rtol=1e-5, atol=1e-7)


def turned(image: Array, degrees: float, right: int, down: int) -> Array:
    """An image (H, W) rotated about its center, cropped to its size, then shifted by whole pixels.
    Sampling is nearest-neighbor, and black outside the image."""
    height, width = image.shape
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    found = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            y, x = i - down, j - right
            if not (0 <= y < height and 0 <= x < width):
                continue
            v, u = y - (height - 1) / 2, x - (width - 1) / 2
            a = round(cos * u + sin * v + (width - 1) / 2)
            b = round(-sin * u + cos * v + (height - 1) / 2)
            if 0 <= b < height and 0 <= a < width:
                found[i, j] = image[b, a]
    return found


class Pixels(nn.Module):
    """A network whose features are the pixels themselves."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.last = nn.Linear(count, 2)

    def forward(self, images: Tensor) -> Tensor:
        said: Tensor = self.last(images.flatten(1).float())
        return said


def test_consistency_is_the_mean_squared_change_under_a_rotation_and_a_shift() -> None:
    """The rotation is by up to 180°, and the shift is by whole pixels, up to a fifth of the
    size."""
    images = np.random.default_rng(3).integers(0, 256, (7, 1, 9, 12), dtype=np.uint8)
    bare = context(torch.from_numpy(images), torch.arange(7) % 2)
    draw = bare.generator("transformation")  # type: ignore[arg-type]
    degrees = 180 * (2 * torch.rand(7, generator=draw).double().numpy() - 1)
    shifts = 0.2 * (2 * torch.rand(7, 2, generator=draw).double().numpy() - 1)
    moved = np.stack([
        turned(image[0], angle, round(12 * x), round(9 * y))
        for image, angle, (x, y) in zip(images, degrees, shifts, strict=True)
    ])  # fmt: skip
    found = transformed(
        torch.from_numpy(images),
        torch.from_numpy(degrees).float(),
        torch.from_numpy(shifts).float(),
    )
    np.testing.assert_array_equal(found[:, 0].numpy(), moved)
    expected = ((images[:, 0] - moved) ** 2).mean(axis=(1, 2))
    np.testing.assert_allclose(sensitivity(Pixels(108), bare).numpy(), expected, rtol=1e-6)


def test_the_least_changed_20_percent_are_clean_and_the_most_changed_5_percent_are_poison() -> None:
    """The thresholds are the changes at positions int(0.2 n) and n - int(0.05 n) in ascending
    order. Images whose change equals a threshold are selected too (calculate_gamma.py and
    separate_samples.py)."""
    change = np.random.default_rng(4).permutation(np.arange(49.0))
    ordered = np.sort(change)
    low, high = ordered[int(49 * 0.2)], ordered[49 - int(49 * 0.05)]
    good, bad = separated(torch.from_numpy(change), 0.2, 0.05)
    assert good.tolist() == np.flatnonzero(change <= low).tolist()
    assert bad.tolist() == np.flatnonzero((change > low) & (change >= high)).tolist()
    assert (len(good), len(bad)) == (10, 2)
    tied = torch.tensor([0.0] * 30 + [1.0] * 5 + [2.0] * 5)
    assert [len(each) for each in separated(tied, 0.2, 0.05)] == [30, 5]
    assert [len(each) for each in separated(torch.zeros(40), 0.2, 0.05)] == [40, 0]


def test_unlearning_and_relearning_share_one_optimizer() -> None:
    """Each of two epochs first increases the loss of the poison and then decreases the loss of the
    clean images."""
    network = TwoLayers(START)
    bad, good = np.arange(20), np.arange(20, 190)
    passes = Passes(network, given(), SETTINGS)
    DBR(epochs=2).unlearn_in_turn(passes, torch.from_numpy(bad), torch.from_numpy(good))
    sgd = NumpySGD(START, MOMENTUM, DECAY)
    for number in range(2):
        for where, sign in ((bad, -1.0), (good, 1.0)):
            draw = given().generator(f"unlearning {number} {sign}", "order")  # type: ignore[arg-type]
            for part in batches(where, draw):
                gradient = cross_entropy_gradient(sgd.weights, IMAGES[part], LABELS[part])
                sgd.step([sign * each for each in gradient], 0.0001)
    agree(weights_of(network), sgd.weights)
