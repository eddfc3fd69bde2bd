"""Patch: a shape of one color, or an image file, at fixed positions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from backdoor_lab.attacks.base import PixelTrigger, to_bytes
from backdoor_lab.attacks.images import picture, share
from backdoor_lab.attacks.threat_model import ThreatModel
from backdoor_lab.core import validation
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.lazy import Tensor, torch

SHAPES: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "square": lambda row, column, size: row + column >= 0,
    "x": lambda row, column, size: (row == column) | (row + column == size - 1),
    "l": lambda row, column, size: (row == 0) | (column == 0),
    "checker": lambda row, column, size: (row + column) % 2 == 0,
}


class Patch(PixelTrigger):
    """Places a shape of one color, or an image file, at one or several positions.

    Gu, Dolan-Gavitt, Garg, "BadNets: Identifying Vulnerabilities in the Machine Learning Model
    Supply Chain", 2017, section 3 (`square`). Tran, Li, Madry, "Spectral Signatures in Backdoor
    Attacks", NeurIPS 2018, section 4 (`x` with size 3: a pixel and its four diagonal neighbors; `l`
    with size 2: a pixel, its lower neighbor and its right neighbor).

    With a mask m in 0..1 (the shape times the image file's opacity), color k and `strength`
    a: x' = (1 - a m) x + a m k, rounded.

    - `shape`: square (the whole rectangle), x (both diagonals), l (first row and column) or checker
      (every other pixel, starting at the upper left one). `size`: pixels, or [height, width]; for
      the shape x, height and width must be equal.
    - `positions`: one [row, column] or a list of them. Non-negative values place the patch's
      upper left pixel, counted from the image's upper left corner; negative values place its
      lower right pixel, counted from the lower right corner: [-1, -1] touches that corner.
    - `color`: one value in 0..255 or one per channel. `image`: an image file, resized to `size`,
      that replaces `color`.
    """

    threat_model = ThreatModel(paper="controls training too")
    path_options: ClassVar[tuple[str, ...]] = ("image",)

    def __init__(
        self,
        *,
        shape: str = "square",
        size: int | Sequence[int] = 3,
        color: int | list[int] = 255,
        positions: tuple[int, int] | Sequence[tuple[int, int]] = ((-1, -1),),
        image: str | None = None,
        strength: float = 1.0,
    ) -> None:
        super().__init__(_several(positions), color)
        self.shape = validation.choice("trigger.shape", shape, SHAPES)
        self.size = _size(size)
        if shape == "x" and self.size[0] != self.size[1]:
            raise ConfigError(
                f"`trigger.size`: a patch with trigger.shape=x must be square, got {size!r};"
                " give one number"
            )
        self.picture = picture("trigger.image", image)
        self.strength = share("trigger.strength", strength)

    def apply_test(self, images: Tensor) -> Tensor:
        color, cover = (part.to(images.device) for part in self._patch(images.shape[1]))
        height, width = self.size
        for top, left in self._corners(*images.shape[2:]):
            under = images[:, :, top : top + height, left : left + width]
            under.copy_(to_bytes(under * (1 - cover) + cover * color))
        return images

    def file_hash(self) -> str:
        return "" if self.picture is None else self.picture.content

    def check_image_size(self, channels: int, height: int, width: int) -> None:
        high, wide = self.size
        corners = self._corners(height, width)
        for (row, column), (top, left) in zip(self.positions, corners, strict=True):
            if not (0 <= top <= height - high and 0 <= left <= width - wide):
                raise ConfigError(
                    f"`trigger`: a patch of {high}x{wide} pixels at ({row}, {column}) does not fit"
                    f" inside images of {height}x{width} pixels (rows x columns; negative"
                    " positions count from the lower right corner)"
                )

    def _patch(self, channels: int) -> tuple[Tensor, Tensor]:
        """Returns the patch's color, float32 (C, h, w) or (C, 1, 1), and its opacity, (h, w) in
        0..1."""
        height, width = self.size
        rows, columns = torch.arange(height)[:, None], torch.arange(width)
        cover = SHAPES[self.shape](rows, columns, height) * self.strength
        if self.picture is None:
            return self._color_for(channels).float()[:, None, None], cover
        color, opacity = self.picture.sized(channels, height, width)
        return color, cover * opacity

    def _corners(self, height: int, width: int) -> list[tuple[int, int]]:
        high, wide = self.size
        return [
            (_upper(row, height - high), _upper(column, width - wide))
            for row, column in self.positions
        ]


def _upper(position: int, room: int) -> int:
    return position if position >= 0 else room + 1 + position


def _several(positions: Any) -> list[tuple[int, int]]:
    one = isinstance(positions, (list, tuple)) and len(positions) > 0
    return [positions] if one and not isinstance(positions[0], (list, tuple)) else positions


def _size(size: object) -> tuple[int, int]:
    pair = size if isinstance(size, (list, tuple)) else (size, size)
    if len(pair) != 2:
        raise ConfigError(f"`trigger.size` must be a number or [height, width], got {size!r}")
    height, width = (validation.whole("trigger.size", value, low=1, below=4097) for value in pair)
    return height, width
