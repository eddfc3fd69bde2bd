"""Random images, and map-style data sets of them. Imports little, as the workers of data loaders
import this module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import PIL.Image
import torch
from torch import Tensor
from torch.utils.data import Dataset

SIDE = 16
"""Side of the images, in pixels; on smaller ones, patches cannot be scaled."""
LABELS = torch.arange(40) % 4


def pictures(n: int, channels: int = 3, seed: int = 0) -> Tensor:
    """Random images, uint8 (n, channels, SIDE, SIDE)."""
    generator = torch.Generator().manual_seed(seed)
    shape = (n, channels, SIDE, SIDE)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


class Pictures(Dataset[tuple[Any, int]]):
    """Random images with the labels `LABELS`; counts how often each image is read."""

    def __init__(self, convert: Callable[[Tensor], Any] = Tensor.clone, channels: int = 3) -> None:
        self.images, self.convert = pictures(len(LABELS), channels), convert
        self.reads: list[int] = []

    def __len__(self) -> int:
        return len(LABELS)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        self.reads.append(index)
        return self.convert(self.images[index]), int(LABELS[index])


class Transformed(Dataset[tuple[Any, int]]):
    """A data set whose images are transformed."""

    def __init__(self, dataset: Pictures, transform: Any) -> None:
        self.dataset, self.transform = dataset, transform

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image, label = self.dataset[index]
        return self.transform(image), label


def as_pil(image: Tensor) -> PIL.Image.Image:
    pixels = image.permute(1, 2, 0).numpy()
    return PIL.Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
