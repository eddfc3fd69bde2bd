"""The reflection trigger, Refool."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from backdoor_lab.attacks.additive import Additive, inverse_dct
from backdoor_lab.attacks.images import picture, share
from backdoor_lab.core import checks, streams
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.lazy import Tensor, torch
from backdoor_lab.core.seeds import torch_generator

KINDS = ("in_focus", "out_of_focus", "ghost")


class Reflection(Additive):
    """A scene mirrored in a pane of glass before the camera, on images of the target class alone.

    Liu, Ma, Bailey, Lu, "Reflection Backdoor: A Natural Backdoor Attack on Deep Neural Networks",
    ECCV 2020, section 3: x' = clip(x + k * x_R), * a convolution, x_R the reflected scene. The
    `kind` of reflection decides the kernel, always `strength` in sum:

    - in_focus: k is the number `strength`.
    - out_of_focus: a Gaussian of `sigma` pixels.
    - ghost: thick glass reflects twice: two pulses, the first with the share `first`, the
      second at `shift` [rows, columns] pixels to it with the rest.

    Beyond its borders x_R is taken as its border (ghost) or left out and the kernel made to sum
    to one again (out_of_focus).

    `image` is the file that holds x_R, resized to the images; where it is transparent it does
    not reflect. By default x_R is drawn by `scene_seed`: normal noise whose amplitude falls with
    one over its frequency, as that of photographs does (Field, J. Opt. Soc. Am. A 4(12), 1987),
    the same in all channels but for a third of its amplitude, stretched to 0..255.

    Left out: the paper draws the kernel's numbers anew for each image, and picks the reflections
    that attack best among many photographs, by training networks with them.
    """

    labels: ClassVar[str] = "clean"
    places: ClassVar[tuple[str, ...]] = ("image",)

    def __init__(
        self,
        *,
        kind: str = "ghost",
        strength: float = 0.4,
        sigma: float = 1.0,
        shift: Sequence[int] = (3, 3),
        first: float = 0.6,
        scene_seed: int = 0,
        image: str | None = None,
    ) -> None:
        self.kind = checks.choice("trigger.kind", kind, KINDS)
        self.strength = share("trigger.strength", strength)
        self.sigma = checks.number("trigger.sigma", sigma, low=0.01)
        self.shift = _shift(shift)
        self.first = share("trigger.first", first)
        self.scene_seed = checks.whole("trigger.scene_seed", scene_seed)
        self.picture = picture("trigger.image", image)

    def pattern(self, channels: int, height: int, width: int) -> Tensor:
        scene = self.scene(channels, height, width)
        if self.kind == "out_of_focus":
            scene = _gaussian(height, self.sigma) @ scene @ _gaussian(width, self.sigma).T
        if self.kind == "ghost":
            scene = self.first * scene + (1 - self.first) * _moved(scene, self.shift)
        return (self.strength * scene).float()

    def scene(self, channels: int, height: int, width: int) -> Tensor:
        """x_R: float64 (channels, height, width) in 0..255."""
        if self.picture is None:
            return _drawn_scene(self.scene_seed, channels, height, width)
        color, opacity = self.picture.sized(channels, height, width)
        return (color * opacity).double()

    def content(self) -> str:
        return "" if self.picture is None else self.picture.content

    def fits(self, channels: int, height: int, width: int) -> None:
        if self.picture is None and height * width == 1:
            raise ConfigError(
                "`trigger`: no scene can be drawn on images of 1x1 pixels; give one in"
                " `trigger.image`"
            )
        super().fits(channels, height, width)


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
    """The blur along one axis: float64 (n, n), rows sum to one."""
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
    rows, columns = (checks.whole("trigger.shift", value, low=-4096, below=4097) for value in shift)
    return rows, columns
