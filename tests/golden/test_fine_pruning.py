"""Fine-pruning, compared with NumPy code written from the paper: which channels are pruned, in
which order, and the first two updates when the pruned network is fine-tuned."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from backdoor_lab.core import streams
from backdoor_lab.defenses.fine_pruning import FinePruning, dormant
from backdoor_lab.defenses.networks import clean_batches
from backdoor_lab.numerics.layers import head
from tests.helpers.contexts import HYPERPARAMETERS, Small, context
from tests.helpers.mutations import Mutation
from tests.helpers.two_layers import TwoLayers, softmax

FILE = "defenses/fine_pruning.py"
MUTATIONS = [
    Mutation(FILE, "values.mean(dim=0)", "values.abs().mean(dim=0)",
             "the mean absolute activation is used"),
    Mutation(FILE, "sort(stable=True)", "sort(stable=True, descending=True)",
             "the most active channels are pruned first"),
    Mutation(FILE, "- max_accuracy_drop", "+ max_accuracy_drop",
             "the allowed drop has the opposite sign"),
    Mutation(FILE, "return order[:count]", "return order[: count + 1]",
             "one channel too many is pruned"),
    Mutation(FILE, ", after=cut_off", "", "pruned channels return in fine-tuning"),
]  # fmt: skip
WIDTH, DROP = 16, 0.04


def attacked() -> Small:
    """A network with sixteen channels, several of which have a negative mean activation of large
    magnitude."""
    generator = torch.Generator().manual_seed(4)
    first, last = nn.Linear(12, WIDTH), nn.Linear(WIDTH, 3)
    with torch.no_grad():
        for value in (*first.parameters(), *last.parameters()):
            value.copy_(torch.randn(value.shape, generator=generator))
        first.bias[:10] -= 3
        first.bias[4:10] += 2
        last.weight[:, :10] /= 20
    return Small(nn.Sequential(first, nn.ELU(), last)).eval()


def labeled(network: Small, n: int) -> tuple[Tensor, Tensor]:
    """Random images; nine of ten have the label that the network predicts."""
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, (n, 1, 3, 4), generator=generator, dtype=torch.uint8)
    with torch.no_grad():
        labels = network(images).argmax(dim=1)
    labels[::10] = (labels[::10] + 1) % 3
    return images, labels


def pruned_by_numpy(layers: TwoLayers, x: np.ndarray, labels: np.ndarray) -> list[int]:
    """The pruned channels according to section 3.1: in increasing order of mean activation on clean
    images, until the accuracy on these images drops by more than the threshold."""

    def accuracy(without: list[int]) -> float:
        h = layers.features(x)
        h[:, without] = 0
        return float(np.mean((h @ layers.w2.T + layers.b2).argmax(axis=1) == labels))

    order = np.argsort(layers.features(x).mean(axis=0))
    count = 0
    while accuracy(list(order[: count + 1])) >= accuracy([]) - DROP:
        count += 1
    return [int(each) for each in order[:count]]


def test_the_order_and_number_of_pruned_channels_follow_the_paper() -> None:
    network = attacked()
    images, labels = labeled(network, 400)
    x = images.flatten(1).double().numpy() / 255
    layers = TwoLayers.of(network, smooth=True)
    expected = pruned_by_numpy(layers, x, labels.numpy())
    values = torch.from_numpy(layers.features(x))
    found = dormant(values, head(network), labels, DROP)
    assert found.tolist() == expected
    assert 4 <= len(expected) < WIDTH - 1
    given = context(images, labels, network=network, clean=(images, labels))
    repaired, notes = FinePruning(epochs=0).repair(given)
    assert notes == {"pruned": len(expected), "of": WIDTH}
    gone = (head(repaired).weight == 0).all(dim=0)
    assert gone.nonzero().flatten().tolist() == sorted(expected)


def test_fine_tuning_trains_the_network_without_the_pruned_channels() -> None:
    """NumPy repeats two steps of SGD with momentum on the cross-entropy, with the pruned channels
    removed from both layers."""
    network = attacked()
    images, labels = labeled(network, 400)
    halves = replace(HYPERPARAMETERS, batch_size=200)
    given = context(images, labels, network=network, clean=(images, labels), hyperparameters=halves)
    layers = TwoLayers.of(network, smooth=True)
    x = images.flatten(1).double().numpy() / 255
    gone = pruned_by_numpy(layers, x, labels.numpy())
    kept = [channel for channel in range(WIDTH) if channel not in gone]
    layers.w1, layers.b1, layers.w2 = layers.w1[kept], layers.b1[kept], layers.w2[:, kept]
    velocity = [np.zeros_like(each) for each in layers.values()]
    for batch, wanted in clean_batches(given, 1, streams.TUNING):
        rows = batch.flatten(1).double().numpy() / 255
        slope = (softmax(layers.logits(rows)) - np.eye(3)[wanted.numpy()]) / len(rows)
        gradients, _ = layers.back(rows, slope)
        for value, speed, gradient in zip(layers.values(), velocity, gradients, strict=True):
            speed[:] = HYPERPARAMETERS.momentum * speed + gradient
            np.subtract(value, 0.1 * speed, out=value)
    repaired, notes = FinePruning(max_accuracy_drop=DROP, epochs=1, lr=0.1).repair(given)
    assert notes["pruned"] == len(gone) > 0
    first, last = repaired.body[0], repaired.body[2]
    found = [first.weight[kept], first.bias[kept], last.weight[:, kept], last.bias]
    for value, expected in zip(found, layers.values(), strict=True):
        assert value.detach().numpy() == pytest.approx(expected, abs=1e-5)
    assert last.weight[:, gone].abs().max() == 0


def test_the_default_limit_on_the_accuracy_drop_is_that_of_the_paper() -> None:
    assert FinePruning().max_accuracy_drop == 0.04
