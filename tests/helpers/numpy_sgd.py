"""A float64 network of two layers, in torch and independently in NumPy, and SGD in NumPy."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

Array: TypeAlias = "np.ndarray[tuple[int, ...], np.dtype[np.float64]]"


class TwoLayers(nn.Module):
    """A float64 network that scales pixels to 0..1 and applies a linear layer, ReLU and a linear
    layer."""

    def __init__(self, weights: list[Array]) -> None:
        super().__init__()
        self.first = nn.Linear(*reversed(weights[0].shape))
        self.last = nn.Linear(*reversed(weights[2].shape))
        self.double()
        with torch.no_grad():
            for mine, value in zip(self.parameters(), weights, strict=True):
                mine.copy_(torch.from_numpy(value))

    def forward(self, images: Tensor) -> Tensor:
        said: Tensor = self.last(self.first(images.flatten(1).double() / 255).relu())
        return said


def weights_of(network: nn.Module) -> list[Array]:
    """The parameters of a network."""
    return [each.detach().numpy().copy() for each in network.parameters()]


def drawn_weights(pixels: int, hidden: int, classes: int, seed: int = 0) -> list[Array]:
    """Weights and biases of both layers, drawn by numpy."""
    draw = np.random.default_rng(seed)
    shapes = (hidden, pixels), (hidden,), (classes, hidden), (classes,)
    return [draw.standard_normal(shape) * 0.7 for shape in shapes]


def drawn_images(n: int, pixels: int, classes: int, seed: int = 0) -> tuple[Array, Array]:
    """Images uint8 (n, 1, 1, pixels) and labels int64 (n,), drawn by numpy."""
    draw = np.random.default_rng(seed)
    images = draw.integers(0, 256, (n, 1, 1, pixels), dtype=np.uint8)
    return images, draw.integers(0, classes, n)


def forward(weights: list[Array], images: Array) -> tuple[Array, Array, Array]:
    """Returns the pixels (n, p), the features (n, h) and the logits (n, c)."""
    pixels = images.reshape(len(images), -1) / 255
    features = np.maximum(pixels @ weights[0].T + weights[1], 0)
    return pixels, features, features @ weights[2].T + weights[3]


def losses(logits: Array, labels: Array) -> Array:
    """The cross-entropy of each row: -log softmax at its label."""
    largest = logits.max(axis=1)
    total = largest + np.log(np.exp(logits - largest[:, None]).sum(axis=1))
    found: Array = total - logits[np.arange(len(labels)), labels]
    return found


def cross_entropy_gradient(weights: list[Array], images: Array, labels: Array) -> list[Array]:
    """The gradient of the mean cross-entropy with respect to each weight."""
    _, features, logits = forward(weights, images)
    share = np.exp(logits - logits.max(axis=1, keepdims=True))
    share /= share.sum(axis=1, keepdims=True)
    share[np.arange(len(labels)), labels] -= 1
    share /= len(labels)
    below = features_gradient(weights, images, share @ weights[2])
    return [*below, share.T @ features, share.sum(axis=0)]


def features_gradient(weights: list[Array], images: Array, wanted: Array) -> list[Array]:
    """The gradient with respect to the weights of the first layer, where `wanted` is the gradient
    with respect to the features (n, h)."""
    pixels, features, _ = forward(weights, images)
    inner = wanted * (features > 0)
    return [inner.T @ pixels, inner.sum(axis=0)]


class NumpySGD:
    """SGD with the momentum buffer b = m b + g. In the first step, b = g. The gradient g includes
    the weight decay. Each step moves the weights by -lr b, or by -lr (g + m b) with Nesterov
    momentum."""

    def __init__(
        self, weights: list[Array], momentum: float, decay: float, *, nesterov: bool = False
    ) -> None:
        self.weights = [each.copy() for each in weights]
        self.momentum, self.decay, self.nesterov = momentum, decay, nesterov
        self.buffers: dict[int, Array] = {}

    def step(self, gradients: list[Array], lr: float) -> None:
        """Updates the first ``len(gradients)`` weights."""
        for number, given in enumerate(gradients):
            gradient = given + self.decay * self.weights[number]
            old = self.buffers.get(number)
            buffer = gradient if old is None else self.momentum * old + gradient
            self.buffers[number] = buffer
            step = gradient + self.momentum * buffer if self.nesterov else buffer
            self.weights[number] = self.weights[number] - lr * step
