"""Refool: a reflection as the trigger."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from backdoor_lab.attacks.additive import Additive, inverse_dct
from backdoor_lab.attacks.images import picture, share
from backdoor_lab.core import streams, validation
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.lazy import Tensor, torch
from backdoor_lab.core.rng import torch_generator

KINDS = ("in_focus", "out_of_focus", "ghost")


class Refool(Additive):
    """Adds the reflection of a scene, as in a window pane, to images of the target class.

    Refool of Liu, Ma, Bailey, Lu, "Reflection Backdoor: A Natural Backdoor Attack on Deep Neural
    Networks", ECCV 2020, section 3: x' = clip(x + k * x_R), where * is convolution and x_R the
    reflected scene. `kind` selects the kernel k, which always sums to `strength`:

    - in_focus: k is the number `strength`.
    - out_of_focus: a Gaussian with a standard deviation of `sigma` pixels.
    - ghost: thick glass reflects twice: two pulses, the first with the fraction `first` of the
      total weight, the second with the fraction 1 - `first`, displaced by `shift` [rows, columns]
      pixels.

    At the border x_R is extended by its edge pixels (ghost), or the kernel is cut off and
    renormalized (out_of_focus).

    `image` is an image file of x_R, resized to the size of the images; transparent areas do not
    reflect. By default x_R is drawn with `pattern_seed`: normal noise with an amplitude
    proportional to 1 / frequency, as in photographs (Field, J. Opt. Soc. Am. A 4(12), 1987). It is
    the sum of noise shared by all channels and of separate noise per channel with a third of the
    amplitude, rescaled to 0..255.

    Differences: the paper draws the kernel's parameters for each image, and selects the most
    effective reflections among many photographs by training models on them.
    """

    label_mode: ClassVar[str] = "clean"
    path_options: ClassVar[tuple[str, ...]] = ("image",)

    def __init__(
        self,
        *,
        kind: str = "ghost",
        strength: float = 0.4,
        sigma: float = 1.0,
        shift: Sequence[int] = (3, 3),
        first: float = 0.6,
        pattern_seed: int = 0,
        image: str | None = None,
    ) -> None:
        self.kind = validation.choice("trigger.kind", kind, KINDS)
        self.strength = share("trigger.strength", strength)
        self.sigma = validation.number("trigger.sigma", sigma, low=0.01)
        self.shift = _shift(shift)
        self.first = share("trigger.first", first)
        self.pattern_seed = validation.whole("trigger.pattern_seed", pattern_seed)
        self.picture = picture("trigger.image", image)

    def pattern(self, channels: int, height: int, width: int) -> Tensor:
        scene = self.scene(channels, height, width)
        if self.kind == "out_of_focus":
            scene = _gaussian(height, self.sigma) @ scene @ _gaussian(width, self.sigma).T
        if self.kind == "ghost":
            scene = self.first * scene + (1 - self.first) * _moved(scene, self.shift)
        return (self.strength * scene).float()

    def scene(self, channels: int, height: int, width: int) -> Tensor:
        """Returns the reflected scene: float64 (channels, height, width) in 0..255."""
        if self.picture is None:
            return _drawn_scene(self.pattern_seed, channels, height, width)
        color, opacity = self.picture.sized(channels, height, width)
        return (color * opacity).double()

    def file_hash(self) -> str:
        return "" if self.picture is None else self.picture.content

    def check_image_size(self, channels: int, height: int, width: int) -> None:
        if self.picture is None and height * width == 1:
            raise ConfigError(
                "`trigger`: cannot draw a scene for images of 1x1 pixels; give an image file in"
                " `trigger.image`"
            )
        super().check_image_size(channels, height, width)


def _drawn_scene(seed: int, channels: int, height: int, width: int) -> Tensor:
    generator = torch_generator(seed, streams.REFLECTION, height, width)
    shared = torch.randn(1, height, width, generator=generator)
    own = torch.randn(channels, height, width, generator=generator)
    row, column = torch.arange(height) / height, torch.arange(width) / width
    frequency = torch.hypot(row[:, None], column).double()
    frequency[0, 0] = torch.inf
    scene = inverse_dct((shared + own / 3) / frequency)
    return 255 * (scene - scene.min()) / (scene.max() - scene.min())


def _gaussian(n: int, sigma: float) -> Tensor:
    """Returns the matrix of a Gaussian blur along one axis of n pixels: float64 (n, n), with rows
    that sum to one."""
    at = torch.arange(n, dtype=torch.float64)
    return torch.softmax(-((at[:, None] - at) ** 2) / (2 * sigma**2), dim=1)


def _moved(scene: Tensor, shift: tuple[int, int]) -> Tensor:
    height, width = scene.shape[1:]
    rows = (torch.arange(height) - shift[0]).clamp(0, height - 1)
    columns = (torch.arange(width) - shift[1]).clamp(0, width - 1)
    return scene[:, rows[:, None], columns]


def _shift(shift: object) -> tuple[int, int]:
    if not isinstance(shift, (list, tuple)) or len(shift) != 2:
        raise ConfigError(f"`trigger.shift` must be [rows, columns], got {shift!r}")
    rows, columns = (
        validation.whole("trigger.shift", value, low=-4096, below=4097) for value in shift
    )
    return rows, columns
