"""What every trigger is: images in, the same images with the trigger out."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from backdoor_lab.core import checks, streams
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.lazy import Tensor, nn, torch
from backdoor_lab.core.seeds import torch_generator
from backdoor_lab.core.streams import Stream
from backdoor_lab.core.types import Images


@dataclass(frozen=True)
class Workshop:
    """What the attacker has at hand while he makes his poison.

    The threat model: he can tamper with training data and train networks of his own, but not
    touch the victim's training. `train` is the clean training set, `target` and `source` class
    numbers (`source` None where the attack has none). `surrogate()` gives a network trained on
    clean data as the victim's is: a module in inference mode that takes float or uint8 images
    (b, C, H, W) in 0..255, normalises them itself, gives logits (b, classes) and can be
    differentiated. Every random number comes from `generator`, so that the poison depends on
    `seed` alone.
    """

    train: Images
    target: int
    source: int | None
    seed: int
    surrogate: Callable[[], nn.Module]
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def generator(self, *what: Stream | int) -> torch.Generator:
        """A CPU generator of its own for each purpose `what`."""
        return torch_generator(self.seed, streams.TRIGGER, *what)


class Trigger(ABC):
    """A visible or hidden mark. Calling it leaves its input as it is.

    A subclass takes its YAML's keys as keyword-only arguments, checks them there, and writes
    its own mathematics in `stamp`: what test images get. Where its paper puts something else on
    training images it overrides `stamp_train`, on covers (triggered images that keep their
    label) `stamp_cover`. A trigger that must be optimised or trained sets `needs_preparing` and
    does that in `prepare`, whose tensors are published as a stage and come back in `state`.
    """

    #: The label mode of the paper, taken where the configuration says `labels=null`:
    #: all_to_one, all_to_all or clean.
    labels: ClassVar[str] = "all_to_one"
    #: Covers for each poisoned image, taken where the configuration says `covers=null`.
    covers: ClassVar[float] = 0.0
    #: Whether the attack is on one source class; it is the one after the target when not set.
    source_specific: ClassVar[bool] = False
    #: Whether `prepare` must have run before images can be triggered.
    needs_preparing: ClassVar[bool] = False
    #: Whether it asks for a surrogate, so that what it makes depends on network and recipe.
    uses_surrogate: ClassVar[bool] = False
    #: Whether what `prepare` gives depends on the target and source class.
    prepared_per_class: ClassVar[bool] = True
    #: Arguments that are paths: the content they lead to decides a result, not where it lies.
    places: ClassVar[tuple[str, ...]] = ()
    #: Arguments that came later, with their defaults: at these an attack is what it was without.
    later: ClassVar[Mapping[str, object]] = {}

    def __call__(self, images: Tensor) -> Tensor:
        """Triggered copies of `images` uint8 (n, C, H, W), C 1 or 3: same shape and type.

        As at test time, where train and test differ. Each image's result depends on that image
        alone. Raises ConfigError when the trigger does not fit on images of this size.
        """
        self._look_at(images)
        return self.stamp(images.clone())

    def poisoned(self, images: Tensor, labels: Tensor, work: Workshop) -> Tensor:
        """The poisoned training images made from `images` uint8 (n, C, H, W), whose true labels
        are `labels` int64 (n,): same shape and type. Raises ConfigError as calling does."""
        self._look_at(images)
        return self.stamp_train(images.clone(), labels, work) if len(images) else images.clone()

    def covering(self, images: Tensor, labels: Tensor, work: Workshop) -> Tensor:
        """The covers made from `images`: as `poisoned`."""
        self._look_at(images)
        return self.stamp_cover(images.clone(), labels, work) if len(images) else images.clone()

    @abstractmethod
    def stamp(self, images: Tensor) -> Tensor:
        """The triggered images; `images` uint8 (n, C, H, W) is a copy and may be changed."""

    def stamp_train(self, images: Tensor, labels: Tensor, work: Workshop) -> Tensor:
        """What training gets instead of `stamp`, where the paper has both."""
        return self.stamp(images)

    def stamp_cover(self, images: Tensor, labels: Tensor, work: Workshop) -> Tensor:
        """What covers get; what poisoned images get unless the paper says otherwise."""
        return self.stamp_train(images, labels, work)

    def prepare(self, work: Workshop) -> dict[str, Tensor]:
        """What must be optimised or trained before any image is triggered: named tensors."""
        return {}

    @property
    def state(self) -> dict[str, Tensor]:
        """What `prepare` gave. Raises ConfigError when it did not run."""
        found: dict[str, Tensor] | None = self.__dict__.get("_state")
        if found is None:
            raise ConfigError(f"`trigger`: {type(self).__name__} was not prepared yet")
        return found

    @state.setter
    def state(self, tensors: dict[str, Tensor]) -> None:
        self._state = tensors

    @property
    def same_everywhere(self) -> bool:
        """Whether poison, covers and test images get one and the same: then it can also be
        stamped on batches, after augmentation."""
        kind = type(self)
        plain = (Trigger.stamp_train, Trigger.stamp_cover)
        return (kind.stamp_train, kind.stamp_cover) == plain

    def content(self) -> str:
        """A hash of the files that `places` lead to; empty where there are none."""
        return ""

    def fits(self, channels: int, height: int, width: int) -> None:
        """Raises ConfigError, naming the rule, when the trigger cannot go on such images."""

    def _look_at(self, images: Tensor) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise TypeError(
                f"a trigger takes uint8 (n, 1 or 3, H, W), got {images.dtype} {tuple(images.shape)}"
            )
        channels, height, width = images.shape[1:]
        self.fits(channels, height, width)


def gray_levels(name: str, value: Any, *, below: float = math.inf, zero: bool = False) -> float:
    """`value`, a bound on the change of a pixel in grey levels, at least 1; with `zero` also 0.

    Raises ConfigError, also for a positive bound below one level, which no image of whole numbers
    could use: it is most likely given as a fraction of 255.
    """
    found = checks.number(name, value, low=0, below=below)
    if found < 1 and not (zero and found == 0):
        raise ConfigError(
            f"`{name}` counts grey levels, 0..255, and {found:g} of one changes no image;"
            f" for {max(1, round(255 * found))}/255 give {max(1, round(255 * found))}"
        )
    return found


def to_bytes(values: Tensor) -> Tensor:
    """Float images (n, C, H, W) in 0..255 as uint8: rounded to the nearest, clipped."""
    return values.round().clamp(0, 255).to(torch.uint8)


class PixelTrigger(Trigger):
    """Single pixels set to one colour: what `pixel` and `pattern` share.

    `positions` (row, column) pairs; negative ones count from the lower right corner, so that
    (-1, -1) is the corner itself on any image size. `color` one value 0..255, or one per
    channel; on grayscale images the three are averaged. `margin` moves all positions by as many
    rows and columns away from the edges that they are counted from.
    """

    later: ClassVar[Mapping[str, object]] = {"margin": 0}

    def __init__(
        self, positions: list[tuple[int, int]], color: int | list[int], margin: int = 0
    ) -> None:
        if not isinstance(positions, (list, tuple)) or not positions:
            raise ConfigError(
                "`trigger` needs a list of at least one pixel position [row, column],"
                f" got {positions!r}"
            )
        inward = checks.whole("trigger.margin", margin, low=0, below=2**15)
        self.positions = [_position(pair, inward) for pair in positions]
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


def _position(pair: object, margin: int) -> tuple[int, int]:
    if not isinstance(pair, (list, tuple)) or len(pair) != 2:
        raise ConfigError(f"`trigger`: a position must be [row, column], got {pair!r}")
    counted = (checks.whole("trigger position", value, low=-(2**31)) for value in pair)
    row, column = (each + margin if each >= 0 else each - margin for each in counted)
    return row, column


def _color(color: object) -> list[int]:
    values = color if isinstance(color, (list, tuple)) else [color]
    if len(values) not in (1, 3):
        raise ConfigError(f"`trigger.color` must be one value or three, got {color!r}")
    return [checks.whole("trigger.color", value, low=0, below=256) for value in values]
