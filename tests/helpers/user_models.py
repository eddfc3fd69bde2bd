"""A small model, training set and clean images, as a user of the Python interface has them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

CLASSES = 3


class UserModel(nn.Module):
    """A convolutional network of images (b, 3, 8, 8), with three classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.body(self.stem(images)).mean(dim=(2, 3)))
        return logits


def user_model(seed: int = 0) -> UserModel:
    """A `UserModel` with random weights, in training mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UserModel()


def user_images(n: int = 60, seed: int = 1) -> tuple[Tensor, Tensor]:
    """n images uint8 (n, 3, 8, 8) of the three classes, which differ in brightness, and their
    labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % CLASSES
    images = torch.randint(0, 90, (n, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return images + (70 * labels).to(torch.uint8).view(-1, 1, 1, 1), labels


def snapshot(model: nn.Module) -> dict[str, Any]:
    """What a method must not change: weights, modes, gradients and hooks."""
    return {
        "weights": {key: value.tolist() for key, value in model.state_dict().items()},
        "modes": [each.training for each in model.modules()],
        "gradients": [(each.requires_grad, each.grad) for each in model.parameters()],
        "hooks": [
            (len(each._forward_hooks), len(each._forward_pre_hooks)) for each in model.modules()
        ],
    }
