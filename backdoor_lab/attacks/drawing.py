"""Patches that are drawn for images of 32x32 pixels and scaled to other sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from backdoor_lab.attacks.base import PixelTrigger
from backdoor_lab.core import validation
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.lazy import Tensor, torch

SIDE = 32
"""Side of the images for which patches are drawn, in pixels."""
TOLERANCE = 0.25
"""Largest relative error of the area of a patch that rounding may cause."""
EMPTY, DRAWN = ".", "#"


def scale(height: int, width: int) -> float:
    """Returns the shorter side of an image, divided by 32."""
    return min(height, width) / SIDE


def check_area(name: str, exact: float, rounded: int, height: int, width: int) -> None:
    """Checks the area of a patch in pixels. Raises ConfigError if `rounded` differs from `exact` by
    more than a quarter; the message states the image size and `name`, the configuration key."""
    error = abs(rounded / exact - 1)
    if error > TOLERANCE:
        raise ConfigError(
            f"`{name}` is given for images of {SIDE}x{SIDE} pixels; on images of {height}x{width}"
            f" pixels the patch should cover {exact:.3g} pixels but covers {rounded} after"
            f" rounding, an error of {error:.0%} (at most {TOLERANCE:.0%}); use images of another"
            " size or a larger patch"
        )


class Drawing:
    """A drawing at one or several positions, for images of 32x32 pixels.

    `patch` has the keys `position`, `rows` and `color`, as described for `AdaptivePatch`. `where`:
    the configuration key of `patch`, for error messages. Raises ConfigError if an entry is
    malformed.
    """

    def __init__(self, where: str, patch: Mapping[str, Any]) -> None:
        self.where = where
        colors = patch["color"] if isinstance(patch["color"], dict) else {DRAWN: patch["color"]}
        self.colors = [PixelTrigger([(0, 0)], color).color for color in colors.values()]
        self.letters = _letters(where, patch["rows"], [str(letter) for letter in colors])
        self.positions = [_place(where, each, self.letters) for each in _several(patch["position"])]

    def on(self, channels: int, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Returns the colors, float32 (channels, height, width) in 0..255, and the mask, float32
        (height, width), which is 1 where the drawing covers the image and 0 elsewhere."""
        letters, whole = self.scaled(height, width), torch.full((height, width), -1)
        for position in self.positions:
            rows, columns = (
                _moved(first, old, new, side, scale(height, width))
                for first, old, new, side in zip(
                    position, self.letters.shape, letters.shape, (height, width), strict=True
                )
            )
            inside = whole[rows, columns]
            inside.copy_(torch.where(letters < 0, inside, letters))
        colors = torch.tensor([_channels(color, channels) for color in self.colors])
        return colors[whole.clamp(min=0)].permute(2, 0, 1), whole.ge(0).float()

    def scaled(self, height: int, width: int) -> Tensor:
        """Returns the drawing for images of this size: int64 (rows, columns), the index of each
        pixel's color, or -1 where the drawing is empty.

        The height and the width of the drawing are multiplied by s / 32, where s is the shorter
        side of the images. Each is then rounded up or down, whichever keeps the area most exact.
        Raises ConfigError if the area is off by more than 25 %.
        """
        factor = scale(height, width)
        exact = int(self.letters.ge(0).sum()) * factor**2
        choices = [
            self.letters[_nearest(self.letters.shape[0], rows)][
                :, _nearest(self.letters.shape[1], columns)
            ]
            for rows in _rounded(self.letters.shape[0] * factor)
            for columns in _rounded(self.letters.shape[1] * factor)
        ]
        best = min(choices, key=lambda drawn: abs(int(drawn.ge(0).sum()) - exact))
        check_area(f"{self.where}.rows", exact, int(best.ge(0).sum()), height, width)
        return best


def _rounded(exact: float) -> list[int]:
    return sorted({max(1, math.floor(exact)), math.ceil(exact)})


def _nearest(old: int, new: int) -> Tensor:
    """Returns the index of the old row that each new row is copied from."""
    return ((torch.arange(new) + 0.5) * old / new).floor().long()


def _moved(first: int, old: int, new: int, side: int, factor: float) -> slice:
    """Returns the rows or columns that a scaled drawing covers. The drawing's distance from an edge
    of the image is also scaled. This is the upper or left edge if `first` is not negative,
    otherwise the lower or right edge."""
    away = round((first if first >= 0 else -first - old) * factor)
    start = max(0, min(away, side - new))
    return slice(start, start + new) if first >= 0 else slice(side - start - new, side - start)


def _channels(color: list[int], channels: int) -> list[float]:
    if channels == 1:
        return [float(round(sum(color) / len(color)))]
    return [float(each) for each in (color if len(color) == channels else color * channels)]


def _letters(where: str, rows: object, known: list[str]) -> Tensor:
    if any(len(letter) != 1 or letter == EMPTY for letter in known):
        raise ConfigError(
            f"`{where}.color` must be a color (one value or three) or a mapping from single"
            f" letters, except '{EMPTY}', to colors, got the letters {known}"
        )
    lines = rows if isinstance(rows, (list, tuple)) else []
    if not lines or not all(isinstance(line, str) and line for line in lines):
        raise _bad_rows(where, rows, known)
    used = set("".join(lines))
    if len(set(map(len, lines))) > 1 or not used - {EMPTY} or not used <= {EMPTY, *known}:
        raise _bad_rows(where, rows, known)
    return torch.tensor([[[EMPTY, *known].index(letter) - 1 for letter in line] for line in lines])


def _bad_rows(where: str, rows: object, known: list[str]) -> ConfigError:
    return ConfigError(
        f"`{where}.rows` must list strings of equal length, with {' or '.join(known)} where the"
        f" patch covers a pixel and `{EMPTY}` elsewhere, and must cover at least one pixel, got"
        f" {rows!r}"
    )


def _several(position: Any) -> Sequence[Any]:
    """Returns a list of positions, even if `position` is a single one."""
    many = isinstance(position, (list, tuple)) and all(
        isinstance(each, (list, tuple)) for each in position
    )
    return position if many and position else [position]


def _place(where: str, at: object, letters: Tensor) -> tuple[int, int]:
    if not isinstance(at, (list, tuple)) or len(at) != 2:
        raise ConfigError(
            f"`{where}.position` must be [row, column] or a list of such pairs, got {at!r}"
        )
    top, left = (
        validation.whole(f"{where}.position", value, low=-SIDE, below=SIDE) for value in at
    )
    for first, size in zip((top, left), letters.shape, strict=True):
        if first % SIDE + size > SIDE:
            raise ConfigError(
                f"`{where}`: a patch of {letters.shape[0]}x{letters.shape[1]} pixels at ({top},"
                f" {left}) extends past the lower or right edge of {SIDE}x{SIDE} pixels"
            )
    return top, left
