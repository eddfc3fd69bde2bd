"""Refool: a reflection as the trigger."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, ClassVar

from backdoor_lab.attacks.additive import inverse_dct
from backdoor_lab.attacks.base import Trigger
from backdoor_lab.attacks.images import content_of, pictures
from backdoor_lab.attacks.threat_model import ThreatModel
from backdoor_lab.core import streams, validation
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.lazy import Tensor, torch
from backdoor_lab.core.rng import torch_generator
from backdoor_lab.numerics import glass

CHUNK = 64
NUMBERS = 11
"""How many random numbers are drawn for each image."""
INCREMENT = -7046029254386353131
SPLIT = (0.15, 0.5)
DARKENING = (1.08, 1.18)


class Refool(Trigger):
    """Mixes images of the target class with the reflections of scenes, as in a window pane.

    Refool of Liu, Ma, Bailey, Lu, "Reflection Backdoor: A Natural Backdoor Attack on Deep Neural
    Networks", ECCV 2020, as in the authors' code. Image t and scene r are mixed in linear light:

        x' = (a t^2.2 + R)^(1 / 2.2), clipped and rounded down

    For each image, 1 - a is drawn from the range `strength`, r from the scenes, and R is one of:

    - with probability `ghost_rate`, the double reflection seen in thick glass, (1 - a) G. G is the
      sum of two copies of r^2.2, displaced by whole numbers of pixels from the range `shift`, with
      weights b and 1 - b, where b is drawn from 0.15..0.5 or 0.5..0.85;
    - otherwise, the reflection of an out-of-focus scene, (1 - a / 2) g B. B is r^2.2, blurred by a
      Gaussian with a standard deviation from the range `sigma`, and darkened in every channel in
      which B plus the linear image exceeds 1 at some pixel. g fades it towards the edges.

    Lengths are in pixels at the resolution at which the longer side of an image is 560 pixels; on
    images of 32x32 pixels the displacement is less than one pixel. Random draws depend on the
    pixels of the image and on `pattern_seed`, so that an image always gets the same reflection.

    `image` is an image file, or a folder whose first `scenes` files are used, resized to the size
    of the images; transparent areas do not reflect. By default, random scenes are generated with
    `pattern_seed`, as many as `scenes`: normal noise with an amplitude proportional to 1 /
    frequency, as in photographs (Field, J. Opt. Soc. Am. A 4(12), 1987). A scene is the sum of
    noise shared by all channels and of separate noise per channel with a third of the amplitude,
    rescaled to 0..255.

    Differences: the authors' scenes are photographs of PASCAL VOC, chosen by training 16 models on
    them. They enlarge images to 560 pixels before mixing, and redraw scenes until the brightness
    and SSIM of the result are within limits. Few images made by this trigger would meet these
    limits.
    """

    label_mode: ClassVar[str] = "clean"
    threat_model = ThreatModel(("images",), paper="knows data and model, to choose the scenes")
    path_options: ClassVar[tuple[str, ...]] = ("image",)

    def __init__(
        self,
        *,
        strength: Sequence[float] = (0.05, 0.45),
        ghost_rate: float = 0.39,
        shift: Sequence[int] = (3, 8),
        sigma: Sequence[float] = (1, 5),
        scenes: int = 200,
        pattern_seed: int = 0,
        image: str | None = None,
    ) -> None:
        self.strength = _range("strength", strength, low=0, below=1)
        self.ghost_rate = validation.share("trigger.ghost_rate", ghost_rate)
        self.shift = _range("shift", shift, low=0, below=glass.SIDE, whole=True)
        self.sigma = _range("sigma", sigma, low=0.01, below=glass.SIDE)
        self.scenes = validation.whole("trigger.scenes", scenes, low=1, below=2**16)
        self.pattern_seed = validation.whole("trigger.pattern_seed", pattern_seed)
        self.pictures = pictures("trigger.image", image, self.scenes)

    def apply_test(self, images: Tensor) -> Tensor:
        if not len(images):
            return images
        scenes = self.linear_scenes(*images.shape[1:]).to(images.device)
        return torch.cat([self._reflecting(part, scenes) for part in images.split(CHUNK)])

    def linear_scenes(self, channels: int, height: int, width: int) -> Tensor:
        """Returns the scenes in linear light: float64 (scenes, channels, height, width) in 0..1."""
        if not self.pictures:
            return drawn_scenes(self.pattern_seed, self.scenes, channels, height, width)
        sized = (each.sized(channels, height, width) for each in self.pictures)
        found = torch.stack([color * opacity for color, opacity in sized])
        return (found.double() / 255) ** glass.GAMMA

    def file_hash(self) -> str:
        return content_of(self.pictures)

    def check_image_size(self, channels: int, height: int, width: int) -> None:
        if min(height, width) < 2:
            raise ConfigError(
                f"`trigger`: images of {height}x{width} pixels are too small for a reflection; they"
                " need at least 2 rows and 2 columns"
            )

    def _reflecting(self, images: Tensor, scenes: Tensor) -> Tensor:
        numbers = self._drawn(images)
        which, weight, kind, down, right, side, split, sigma, factor, top, left = numbers.unbind(1)
        image = (images.double() / 255) ** glass.GAMMA
        scene = scenes[(which * len(scenes)).long()]
        first = (side.round() - _within(SPLIT, split)).abs()
        twice = glass.ghost(scene, self._offset(down), self._offset(right), first)
        soft = glass.blurred(scene, _within(self.sigma, sigma))
        soft = glass.darkened(soft, image, _within(DARKENING, factor))
        soft = soft * glass.fading(scene, top, left)
        kept = 1 - _within(self.strength, weight)[:, None, None, None]
        ghosts = (kind < self.ghost_rate)[:, None, None, None]
        reflected = torch.where(ghosts, (1 - kept) * twice, (1 - kept / 2) * soft)
        mixed = (kept * image + reflected).clamp(0, 1) ** (1 / glass.GAMMA)
        return (255 * mixed).to(torch.uint8)

    def _offset(self, number: Tensor) -> Tensor:
        low, high = self.shift
        return low + (number * (high - low + 1)).floor()

    def _drawn(self, images: Tensor) -> Tensor:
        """Returns random numbers in 0..1 that depend on the pixels of each image: float64 (n,
        `NUMBERS`)."""
        generator = torch_generator(self.pattern_seed, streams.REFLECTION)
        factors = torch.randint(2**62, images.shape[1:], generator=generator).to(images.device)
        state = (images * factors).sum(dim=(1, 2, 3))
        steps = INCREMENT * torch.arange(1, NUMBERS + 1, device=images.device)
        return _scrambled(state[:, None] + steps)


def _scrambled(state: Tensor) -> Tensor:
    """Returns SplitMix64's output for 64-bit states as float64 in 0..1 (Steele, Lea, Flood, OOPSLA
    2014)."""
    state = (state ^ _shifted(state, 30)) * -4658895280553007687
    state = (state ^ _shifted(state, 27)) * -7723592293110705685
    return _shifted(state ^ _shifted(state, 31), 11).double() / 2**53


def _shifted(state: Tensor, by: int) -> Tensor:
    """Returns `state` shifted right logically; torch's shift is arithmetic."""
    return (state >> by) & (2 ** (64 - by) - 1)


def _within(bounds: tuple[float, float], number: Tensor) -> Tensor:
    return bounds[0] + (bounds[1] - bounds[0]) * number


@functools.lru_cache(maxsize=2)
def drawn_scenes(seed: int, n: int, channels: int, height: int, width: int) -> Tensor:
    """Returns random scenes in linear light: float64 (n, channels, height, width) in 0..1."""
    generator = torch_generator(seed, streams.REFLECTION, height, width)
    shared = torch.randn(n, 1, height, width, generator=generator)
    own = torch.randn(n, channels, height, width, generator=generator)
    row, column = torch.arange(height) / height, torch.arange(width) / width
    frequency = torch.hypot(row[:, None], column).double()
    frequency[0, 0] = torch.inf
    scenes = inverse_dct((shared + own / 3) / frequency)
    scenes -= scenes.amin(dim=(1, 2, 3), keepdim=True)
    return (scenes / scenes.amax(dim=(1, 2, 3), keepdim=True)) ** glass.GAMMA


def _range(
    key: str, bounds: Any, *, low: float, below: float, whole: bool = False
) -> tuple[float, float]:
    if not isinstance(bounds, (list, tuple)) or len(bounds) != 2:
        raise ConfigError(f"`trigger.{key}` must be a range [low, high], got {bounds!r}")
    check = validation.whole if whole else validation.number
    first, last = (float(check(f"trigger.{key}", each, low=low, below=below)) for each in bounds)
    if first > last:
        raise ConfigError(f"`trigger.{key}`: low must not exceed high, got [{first:g}, {last:g}]")
    return first, last
