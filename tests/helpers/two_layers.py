"""Two linear layers in NumPy with explicitly computed gradients: a second implementation for golden
tests."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor, nn

from tests.helpers.contexts import Small


def softmax(z: np.ndarray) -> np.ndarray:
    """The softmax of each row."""
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True))


@dataclass
class TwoLayers:
    """A network with the logits w2 σ(w1 x + b1) + b2 for rows x in 0..1; σ is ReLU, or ELU if
    `smooth`."""

    w1: np.ndarray
    b1: np.ndarray
    w2: np.ndarray
    b2: np.ndarray
    smooth: bool = False

    @classmethod
    def of(cls, network: Small, *, smooth: bool = False) -> TwoLayers:
        """Copies the weights of the first and last layer of `network`."""
        layers = network.body[0], network.body[-1]  # type: ignore[index]
        values = [
            each.detach().double().numpy().copy()
            for layer in layers
            for each in (layer.weight, layer.bias)
        ]
        return cls(*values, smooth=smooth)

    def features(self, x: np.ndarray) -> np.ndarray:
        """The inputs (n, width) of the last layer."""
        inner = x @ self.w1.T + self.b1
        negative = np.expm1(np.minimum(inner, 0)) if self.smooth else 0.0
        return np.where(inner > 0, inner, negative)

    def logits(self, x: np.ndarray) -> np.ndarray:
        """The logits (n, classes) of the rows x (n, pixels)."""
        return np.asarray(self.features(x) @ self.w2.T + self.b2)

    def back(self, x: np.ndarray, slope: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        """Gradients with respect to w1, b1, w2, b2 and to x, for the gradient `slope`
        (n, classes) with respect to the logits."""
        inner, h = x @ self.w1.T + self.b1, self.features(x)
        rest = np.exp(np.minimum(inner, 0)) if self.smooth else 0.0
        to_inner = slope @ self.w2 * np.where(inner > 0, 1.0, rest)
        weights = [to_inner.T @ x, to_inner.sum(axis=0), slope.T @ h, slope.sum(axis=0)]
        return weights, to_inner @ self.w1

    def values(self) -> list[np.ndarray]:
        """The parameters w1, b1, w2, b2."""
        return [getattr(self, each.name) for each in fields(self) if each.name != "smooth"]


class Precise(Small):
    """A network in float64 that scales pixels to 0..1, flattens them, and applies `body`."""

    def forward(self, images: Tensor) -> Tensor:
        said: Tensor = self.body(images.flatten(1).double() / 255)
        return said


def precise(pixels: int, classes: int, seed: int, width: int = 8, *, norm: bool = False) -> Precise:
    """A float64 network of two linear layers with ReLU and random weights; with `norm`, batch
    normalization precedes the ReLU."""
    generator = torch.Generator().manual_seed(seed)
    first, last = nn.Linear(pixels, width), nn.Linear(width, classes)
    body = nn.Sequential(first, *[nn.BatchNorm1d(width)] * norm, nn.ReLU(), last).double()
    with torch.no_grad():
        for value in body.parameters():
            value.copy_(torch.randn(value.shape, generator=generator))
    return Precise(body).eval()
