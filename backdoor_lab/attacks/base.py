"""What every trigger is: images in, the same images with the trigger out."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from backdoor_lab import checks
from backdoor_lab.errors import ConfigError


class Trigger(ABC):
    """A visible or hidden mark. Calling it leaves its input as it is.

    A subclass takes its YAML's keys as keyword-only arguments, checks them there, and writes
    only its own mathematics in `stamp`.
    """

    def __call__(self, images: Tensor) -> Tensor:
        """Triggered copies of `images` uint8 (n, C, H, W), C 1 or 3: same shape and type.

        Raises ConfigError when the trigger does not fit on images of this size.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise TypeError(
                f"a trigger takes uint8 (n, 1 or 3, H, W), got {images.dtype} {tuple(images.shape)}"
            )
        channels, height, width = images.shape[1:]
        self.fits(channels, height, width)
        return self.stamp(images.clone())

    @abstractmethod
    def stamp(self, images: Tensor) -> Tensor:
        """The triggered images; `images` uint8 (n, C, H, W) is a copy and may be changed."""

    def fits(self, channels: int, height: int, width: int) -> None:
        """Raises ConfigError, naming the rule, when the trigger cannot go on such images."""


class PixelTrigger(Trigger):
    """Single pixels set to one colour: what `pixel` and `pattern` share.

    `positions` (row, column) pairs; negative ones count from the lower right corner, so that
    (-1, -1) is the corner itself on any image size. `color` one value 0..255, or one per
    channel; on grayscale images the three are averaged.
    """

    def __init__(self, positions: list[tuple[int, int]], color: int | list[int]) -> None:
        if not isinstance(positions, (list, tuple)) or not positions:
            raise ConfigError(
                "`trigger` needs a list of at least one pixel position [row, column],"
                f" got {positions!r}"
            )
        self.positions = [_position(pair) for pair in positions]
        self.color = _color(color)

    def stamp(self, images: Tensor) -> Tensor:
        color = self._color_for(images.shape[1]).to(images.device)
        for row, column in self.positions:
            images[:, :, row, column] = color
        return images

    def fits(self, channels: int, height: int, width: int) -> None:
        for row, column in self.positions:
            if not (-height <= row < height and -width <= column < width):
                raise ConfigError(
                    f"`trigger`: pixel ({row}, {column}) lies outside images of {height}x{width}"
                    " pixels (rows, columns; negative ones count from the lower right corner)"
                )

    def _color_for(self, channels: int) -> Tensor:
        color = torch.tensor(self.color, dtype=torch.uint8)
        if channels == 1 and len(color) == 3:
            return color.float().mean().round().to(torch.uint8)[None]
        return color if len(color) == channels else color.expand(channels)


def _position(pair: object) -> tuple[int, int]:
    if not isinstance(pair, (list, tuple)) or len(pair) != 2:
        raise ConfigError(f"`trigger`: a position must be [row, column], got {pair!r}")
    row, column = (checks.whole("trigger position", value, low=-(2**31)) for value in pair)
    return row, column


def _color(color: object) -> list[int]:
    values = color if isinstance(color, (list, tuple)) else [color]
    if len(values) not in (1, 3):
        raise ConfigError(f"`trigger.color` must be one value or three, got {color!r}")
    return [checks.whole("trigger.color", value, low=0, below=256) for value in values]
