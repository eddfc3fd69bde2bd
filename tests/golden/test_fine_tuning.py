"""Fine-tuning, compared with NumPy code written from BackdoorBench's description: SGD with momentum
and weight decay on clean images, with a learning rate that follows a cosine over the epochs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from backdoor_lab.core import streams
from backdoor_lab.defenses.fine_tuning import FineTuning
from tests.helpers.contexts import Small, context
from tests.helpers.mutations import Mutation
from tests.helpers.two_layers import TwoLayers, softmax

FILE = "defenses/fine_tuning.py"
MUTATIONS = [
    Mutation(FILE, "* (1 + math.cos(math.pi * epoch / self.epochs)) / 2", "",
             "the learning rate is constant"),
    Mutation(FILE, "math.pi * epoch / self.epochs", "math.pi * (epoch + 1) / self.epochs",
             "the learning rate is an epoch ahead"),
    Mutation(FILE, "weight_decay=self.weight_decay", "weight_decay=0",
             "there is no weight decay"),
    Mutation(FILE, "momentum=self.momentum", "momentum=0", "there is no momentum"),
    Mutation(FILE, "head(network)).parameters()", "network).parameters()",
             "layers=last trains every layer"),
]  # fmt: skip
N, BATCH, EPOCHS, LR, MOMENTUM, DECAY = 60, 40, 3, 0.5, 0.9, 0.01


def attacked() -> Small:
    generator = torch.Generator().manual_seed(4)
    first, last = nn.Linear(12, 8), nn.Linear(8, 3)
    with torch.no_grad():
        for value in (*first.parameters(), *last.parameters()):
            value.copy_(torch.randn(value.shape, generator=generator))
    return Small(nn.Sequential(first, nn.ELU(), last)).eval()


def labeled() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, (N, 1, 3, 4), generator=generator, dtype=torch.uint8)
    return images, torch.arange(N) % 3


def by_numpy(orders: list[list[int]], trained: slice) -> list[np.ndarray]:
    """The weights after the epochs with these orders of the images. Only the matrices and vectors
    that `trained` selects are changed."""
    images, labels = labeled()
    x, y = images.flatten(1).double().numpy() / 255, labels.numpy()
    layers = TwoLayers.of(attacked(), smooth=True)
    velocity = [np.zeros_like(each) for each in layers.values()]
    for epoch, order in enumerate(orders):
        lr = LR * 0.5 * (1 + np.cos(np.pi * epoch / len(orders)))
        for start in range(0, N, BATCH):
            rows = order[start : start + BATCH]
            slope = (softmax(layers.logits(x[rows])) - np.eye(3)[y[rows]]) / len(rows)
            found, _ = layers.back(x[rows], slope)
            parts = [*zip(layers.values(), velocity, found, strict=True)][trained]
            for value, speed, gradient in parts:
                speed[:] = MOMENTUM * speed + gradient + DECAY * value
                np.subtract(value, lr * speed, out=value)
    return list(layers.values())


@pytest.mark.parametrize(("layers", "trained"), [("all", slice(0, 4)), ("last", slice(2, 4))])
def test_the_weights_after_three_epochs_are_those_of_numpy(layers: str, trained: slice) -> None:
    images, labels = labeled()
    given = context(images, labels, network=attacked(), clean=(images, labels))
    generator = given.generator(streams.TUNING, streams.ORDER)
    orders = [torch.randperm(N, generator=generator).tolist() for _ in range(EPOCHS)]
    options = {"lr": LR, "momentum": MOMENTUM, "weight_decay": DECAY}
    method = FineTuning(layers=layers, epochs=EPOCHS, batch_size=BATCH, **options)  # type: ignore[arg-type]
    repaired, _ = method.repair(given)
    first, last = repaired.body[0], repaired.body[2]  # type: ignore[index]
    expected = by_numpy(orders, trained)
    before = [value.detach().numpy() for value in attacked().parameters()]
    assert np.abs(expected[2] - before[2]).max() > 0.1
    for found, wanted in zip((*first.parameters(), *last.parameters()), expected, strict=True):
        assert found.detach().numpy() == pytest.approx(wanted, abs=1e-4)


def test_the_defaults_are_those_of_backdoorbench() -> None:
    ours = FineTuning()
    assert (ours.epochs, ours.batch_size, ours.lr) == (100, 256, 0.01)
    assert (ours.momentum, ours.weight_decay, ours.layers) == (0.9, 0.0005, "all")
