"""Transformations that simulate a camera: compression, brightness, blur, motion, noise.

The name of a transformation may end with its strength: ``jpeg75``, ``shift2``. A name without a
number means the default strength. torch is imported only when images are transformed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from backdoor_lab.core.errors import ConfigError, unknown

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_NAME = re.compile(r"([a-z]+)(\d{1,9}(?:\.\d{1,9})?)?")


@dataclass(frozen=True)
class Kind:
    """What the strength of a transformation means, and its range from `low` to `high`, inclusive.

    `whole`: only integers are allowed. `none` is the strength at which nothing changes.
    """

    unit: str
    default: float
    low: float
    high: float
    none: float
    whole: bool = False

    def allows(self, strength: float) -> bool:
        """Whether `strength` is in the range."""
        return self.low <= strength <= self.high and (not self.whole or strength == int(strength))

    @property
    def span(self) -> str:
        """The allowed strengths as text, for messages: ``an integer from 1 to 100``."""
        return f"{'an integer' if self.whole else 'a number'} from {self.low:g} to {self.high:g}"


KINDS = {
    "jpeg": Kind("JPEG quality", 75, 1, 100, 100, whole=True),
    "brightness": Kind("brightness factor", 1.5, 0.05, 10, 1),
    "contrast": Kind("contrast factor", 0.5, 0.05, 10, 1),
    "blur": Kind("standard deviation in pixels", 1, 0.1, 32, 0),
    "shift": Kind("shift in pixels", 2, 1, 1024, 0, whole=True),
    "rescale": Kind("share of the size", 0.5, 0.05, 0.95, 1),
    "rotate": Kind("rotation in degrees", 10, 0.5, 180, 0),
    "noise": Kind("standard deviation in gray levels", 8, 0.5, 128, 0),
}
"""Every transformation by name. `blur` and `noise` are Gaussian. `shift` moves each image in one of
eight directions, chosen at random, and repeats its border. `rotate` turns each image left or right
at random."""


def known() -> str:
    """A list of all transformations with their strengths, for messages."""
    return "; ".join(f"{n} ({k.unit}, {k.span}; default {k.default:g})" for n, k in KINDS.items())


def parse(name: object) -> tuple[str, float]:
    """Split the name of a transformation into its kind and its strength. Raises ConfigError if the
    kind is unknown or the strength not allowed."""
    found = _NAME.fullmatch(name) if isinstance(name, str) else None
    kind = KINDS.get(found[1]) if found else None
    if found is None or kind is None:
        listed = [f"{each}{kind.default:g}" for each, kind in KINDS.items()]
        raise ConfigError(
            f"{unknown('`measure.asr_under`:', name, listed)} A name may include a strength:"
            f" {known()}"
        )
    strength = kind.default if found[2] is None else float(found[2])
    if not kind.allows(strength):
        raise ConfigError(
            f"`measure.asr_under`: {name} is out of range: the strength of {found[1]}"
            f" ({kind.unit}) must be {kind.span}"
        )
    return found[1], strength


def canonical_names(given: object) -> tuple[str, ...]:
    """Normalize a list of transformations, so that equivalent lists become equal: each name
    contains its strength, and the names are sorted as in KINDS, then by strength. Raises
    ConfigError if the list is not valid."""
    if not isinstance(given, (list, tuple)):
        raise ConfigError(
            f"`measure.asr_under` must be a list such as [jpeg75, blur1], got {given!r}. Known:"
            f" {known()}"
        )
    parsed = [parse(name) for name in given]
    for position, each in enumerate(parsed):
        if each in parsed[:position]:
            raise ConfigError(f"`measure.asr_under` names {written(*each)} twice")
    order = list(KINDS)
    return tuple(written(*each) for each in sorted(parsed, key=lambda p: (order.index(p[0]), p[1])))


def written(kind: str, strength: float) -> str:
    """The name of a transformation of this strength: ``brightness0.5``."""
    return f"{kind}{strength:.10g}"


def check_fits(names: Sequence[str], height: int, width: int) -> None:
    """Raises ConfigError if a transformation would move images of this size out of view."""
    for name in names:
        kind, strength = parse(name)
        if kind == "shift" and strength >= min(height, width):
            raise ConfigError(
                f"`measure.asr_under`: {name} would move images of {height}x{width} out of view:"
                f" use a shift of at most {min(height, width) - 1}"
            )


def transformation(name: str, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """Create the transformation with this name: a function of images uint8 (n, C, H, W) with
    one or three channels.

    It draws random numbers from `generator`, image by image. The results are rounded to 8 bits, as
    in an image file (`brightness` and `contrast` round down, as in torchvision).
    """
    kind, strength = parse(name)
    apply = _APPLY[kind]
    return lambda images: apply(images, strength, generator) if len(images) else images


def _jpeg(images: Tensor, quality: float, generator: torch.Generator) -> Tensor:
    return _functional().jpeg(images, int(quality))


def _brightness(images: Tensor, factor: float, generator: torch.Generator) -> Tensor:
    return _functional().adjust_brightness(images, factor)


def _contrast(images: Tensor, factor: float, generator: torch.Generator) -> Tensor:
    return _functional().adjust_contrast(images, factor)


def _blur(images: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    # The kernel covers three standard deviations to each side, if the reflected border is that
    # wide.
    height, width = images.shape[-2:]
    radii = [min(math.ceil(3 * sigma), side - 1) for side in (width, height)]
    return _functional().gaussian_blur(images, [2 * r + 1 for r in radii], [sigma, sigma])


def _shift(images: Tensor, pixels: float, generator: torch.Generator) -> Tensor:
    import torch

    by, (height, width) = int(pixels), images.shape[-2:]
    padded = _functional().pad(images.float(), [by] * 4, padding_mode="edge")
    corners = [(y, x) for y in (0, by, 2 * by) for x in (0, by, 2 * by) if (y, x) != (by, by)]
    drawn = torch.randint(len(corners), (len(images),), generator=generator)
    moved = torch.empty_like(images)
    for number, (y, x) in enumerate(corners):
        chosen = drawn == number
        moved[chosen] = padded[chosen, :, y : y + height, x : x + width].to(torch.uint8)
    return moved


def _rescale(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    # Compute in float: the result of torchvision's uint8 code depends on the processor.
    size = list(images.shape[-2:])
    small = _functional().resize(
        images.float(), [max(1, round(share * side)) for side in size], antialias=True
    )
    return _to_bytes(_functional().resize(small, size, antialias=True))


def _rotate(images: Tensor, degrees: float, generator: torch.Generator) -> Tensor:
    import torch
    from torchvision.transforms import InterpolationMode

    size = list(images.shape[-2:])
    # Repeat the border far enough that the rotated image has no empty corner.
    down, across = (math.ceil((math.hypot(*size) - side) / 2) + 1 for side in size)
    padded = _functional().pad(images.float(), [across, down, across, down], padding_mode="edge")
    left = torch.randint(2, (len(images),), generator=generator).bool()
    turned = torch.empty_like(images)
    for chosen, angle in ((left, degrees), (~left, -degrees)):
        if chosen.any():
            found = _functional().rotate(padded[chosen], angle, InterpolationMode.BILINEAR)
            turned[chosen] = _to_bytes(_functional().center_crop(found, size))
    return turned


def _noise(images: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    import torch

    return _to_bytes(images + sigma * torch.randn(images.shape, generator=generator))


_APPLY: dict[str, Callable[[Tensor, float, torch.Generator], Tensor]] = {
    "jpeg": _jpeg, "brightness": _brightness, "contrast": _contrast, "blur": _blur,
    "shift": _shift, "rescale": _rescale, "rotate": _rotate, "noise": _noise,
}  # fmt: skip


def _to_bytes(values: Tensor) -> Tensor:
    from backdoor_lab.attacks.base import to_bytes

    return to_bytes(values)


def _functional() -> Any:
    from torchvision.transforms.v2 import functional

    return functional
