"""Contexts for testing defenses that need networks: small networks and images, without ground
truth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from backdoor_lab.core import streams
from backdoor_lab.core.rng import derive
from backdoor_lab.core.streams import Stream
from backdoor_lab.core.types import LabeledImages
from backdoor_lab.defenses.context import DefenseContext, TrainingHyperparameters
from backdoor_lab.defenses.networks import shuffled, train

HYPERPARAMETERS = TrainingHyperparameters(
    epochs=5, batch_size=16, lr=0.1, momentum=0.9, weight_decay=0.0
)


class Small(nn.Module):
    """A network that scales pixels to 0..1, flattens them, and applies `body`."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, images: Tensor) -> Tensor:
        said: Tensor = self.body(images.flatten(1).float() / 255)
        return said


def linear(pixels: int, classes: int, seed: int = 0) -> Small:
    """A network with one linear layer and random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "weights"))
        return Small(nn.Linear(pixels, classes)).eval()


def hidden(pixels: int, classes: int, seed: int = 0, width: int = 12) -> Small:
    """A network with one hidden layer and batch normalization."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "weights"))
        layers = (nn.Linear(pixels, width), nn.BatchNorm1d(width), nn.ReLU())
        return Small(nn.Sequential(*layers, nn.Linear(width, classes))).eval()


def copy_of(network: nn.Module) -> nn.Module:
    import copy

    return copy.deepcopy(network)


def context(
    images: Tensor,
    labels: Tensor,
    *,
    network: nn.Module | None = None,
    fresh: Callable[[int], nn.Module] | None = None,
    clean: tuple[Tensor, Tensor] | None = None,
    seed: int = 3,
    hyperparameters: TrainingHyperparameters = HYPERPARAMETERS,
    classes: int | None = None,
) -> DefenseContext:
    """A context with these images, uint8 (n, C, H, W), and without augmentation."""
    count = int(labels.max()) + 1 if classes is None else classes
    names = tuple("abcdefghij"[:count])
    pixels = images[0].numel()
    attacked = hidden(pixels, count) if network is None else network
    said: dict[str, Any] = {
        "classes": names,
        "labels": labels,
        "images": lambda where, generator: images[where],
        "augment": lambda found, generator: found,
        "network": lambda: copy_of(attacked).eval(),
        "fresh": fresh or (lambda number: hidden(pixels, count, number)),
        "hyperparameters": hyperparameters,
        "seed": seed,
        "clean": None if clean is None else LabeledImages(*clean, names),
    }
    return DefenseContext(**said)


def trained(network: nn.Module, given: DefenseContext, epochs: int) -> nn.Module:
    """Trains a network on the training images of a context, without augmentation."""
    order = given.generator(Stream("t"), streams.ORDER)
    size = given.hyperparameters.batch_size
    parts = [part for _ in range(epochs) for part in shuffled(len(given.labels), size, order)]
    batches = [(given.images(part, None), given.labels[part]) for part in parts]
    return train(network, batches, (0.1, 0.9, 0.0))
