"""Models that do not come from this package, as users bring them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer


def transformer(classes: int = 3, image_size: int = 16) -> VisionTransformer:
    """torchvision's vision transformer with two tiny layers, on images of 4x4 patches."""
    torch.manual_seed(0)
    net = VisionTransformer(
        image_size=image_size, patch_size=4, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=16,
        num_classes=classes,
    )  # fmt: skip
    # torchvision initializes the head with zeros.
    nn.init.normal_(net.heads[-1].weight)
    return net


def sequential(classes: int = 3) -> nn.Sequential:
    """A convolutional network for RGB images of any size, whose second module works in place."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True), nn.BatchNorm2d(4), nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, classes),
    )  # fmt: skip


class TakesDict(nn.Module):
    """A model whose input and output are dictionaries, like those of Hugging Face's
    transformers."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.net = sequential(classes)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, object]:
        """Returns the logits and, as the first value, the mean of each image."""
        images = batch["pixel_values"]
        return {
            "kind": "demo",
            "means": (images.mean(dim=(2, 3)), None),
            "logits": self.net(images),
        }


class Wrapped(nn.Module):
    """The wrapper that a user writes around `TakesDict`."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.inner = TakesDict(classes)

    def forward(self, images: Tensor) -> Tensor:
        """Returns the logits of `images`."""
        logits = self.inner({"pixel_values": images})["logits"]
        assert isinstance(logits, Tensor)
        return logits


def some_images(n: int = 12, size: int = 16, channels: int = 3) -> Tensor:
    """Random images, uint8 (n, channels, size, size)."""
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (n, channels, size, size), generator=generator, dtype=torch.uint8)
