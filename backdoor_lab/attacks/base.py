"""Base classes of triggers, which map images to triggered copies of them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from backdoor_lab import returned
from backdoor_lab.attacks.threat_model import ThreatModel
from backdoor_lab.core import streams, validation
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.lazy import Tensor, nn, torch
from backdoor_lab.core.rng import torch_generator
from backdoor_lab.core.streams import Stream
from backdoor_lab.core.types import LabeledImages


def unchanged(images: Tensor, generator: torch.Generator) -> Tensor:
    """Returns `images` unchanged: the default for `AttackContext.augment`."""
    return images


@dataclass(frozen=True)
class AttackContext:
    """What an attacker can use while making the poison.

    Threat model: the attacker can modify training data and train models, but cannot influence
    the victim's training. `train` is the clean training set; `target` and `source` are labels
    (`source` is None if the attack has no source class). `surrogate()` returns a model
    trained on clean data with the victim's recipe: a differentiable module in eval mode that
    takes float or uint8 images (b, C, H, W) in 0..255, normalizes them itself and returns logits
    (b, classes). `augment(images, generator)` augments images as the victim's recipe does, and is
    differentiable. All random numbers of an attack must come from `generator`, so that they depend
    only on `seed`.
    """

    train: LabeledImages
    target: int
    source: int | None
    seed: int
    surrogate: Callable[[], nn.Module]
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    augment: Callable[[Tensor, torch.Generator], Tensor] = unchanged

    def generator(self, *what: Stream | int) -> torch.Generator:
        """Returns a CPU generator for the purpose `what`. Generators of different purposes are
        independent."""
        return torch_generator(self.seed, streams.TRIGGER, *what)


class Trigger(ABC):
    """Base class of triggers. Calling a trigger does not modify its input.

    A subclass takes the keys of its YAML as keyword-only arguments, validates them, and implements
    `apply_test`, which is applied to test images. If the paper treats training images differently,
    the subclass also overrides `apply_train`; if the paper treats cover images (triggered images
    that keep their label) differently, `apply_cover`. A trigger that must be optimized or trained
    sets `needs_preparing` and implements `prepare`, whose returned tensors are cached and assigned
    to `state`.
    """

    #: The paper's label mode, used if the configuration has `label_mode=null`: all_to_one,
    #: all_to_all or clean.
    label_mode: ClassVar[str] = "all_to_one"
    #: Cover images per poisoned image, used if the configuration has `cover_rate=null`.
    cover_rate: ClassVar[float] = 0.0
    #: What the attacker controls and must know.
    threat_model: ClassVar[ThreatModel] = ThreatModel()
    #: Whether the attack has a source class. If `source` is not configured, it is the class after
    #: the target.
    source_specific: ClassVar[bool] = False
    #: Whether `prepare` must run before images can be triggered.
    needs_preparing: ClassVar[bool] = False
    #: Whether the trigger needs a surrogate model. If so, the poison also depends on the configured
    #: model and training recipe.
    uses_surrogate: ClassVar[bool] = False
    #: Whether the result of `prepare` depends on the target and source class.
    prepared_per_class: ClassVar[bool] = True
    #: Whether each result of `apply_train` and `apply_cover` depends only on its own image.
    per_image: ClassVar[bool] = False
    #: Names of arguments that are paths. The content of these files is part of a cell's identity;
    #: their paths are not.
    path_options: ClassVar[tuple[str, ...]] = ()
    #: Arguments added in a later version, each with the default that reproduces earlier results.
    later: ClassVar[Mapping[str, object]] = {}

    def __call__(self, images: Tensor) -> Tensor:
        """Returns triggered copies of `images`, uint8 (n, C, H, W) with C 1 or 3; same shape and
        dtype.

        Uses the test-time form of the trigger. Each result depends only on its own image. Raises
        TypeError for other shapes or dtypes, ConfigError if the trigger does not fit the images.
        """
        self._look_at(images)
        return returned.images(self, "apply_test", self.apply_test(images.clone()), images)

    def poisoned(self, images: Tensor, labels: Tensor, context: AttackContext) -> Tensor:
        """Returns poisoned training images made from `images` uint8 (n, C, H, W) with true labels
        `labels` int64 (n,); same shape and dtype. Raises the same errors as `__call__`."""
        self._look_at(images)
        if not len(images):
            return images.clone()
        made = self.apply_train(images.clone(), labels, context)
        return returned.images(self, self._implemented("apply_train"), made, images)

    def make_covers(self, images: Tensor, labels: Tensor, context: AttackContext) -> Tensor:
        """Returns cover images made from `images`; arguments, shape and errors as for
        `poisoned`."""
        self._look_at(images)
        if not len(images):
            return images.clone()
        made = self.apply_cover(images.clone(), labels, context)
        return returned.images(self, self._implemented("apply_cover"), made, images)

    @abstractmethod
    def apply_test(self, images: Tensor) -> Tensor:
        """Returns triggered test images. `images`, uint8 (n, C, H, W), is a copy and may be
        modified."""

    def apply_train(self, images: Tensor, labels: Tensor, context: AttackContext) -> Tensor:
        """Returns triggered training images; by default the same as triggered test images."""
        return self.apply_test(images)

    def apply_cover(self, images: Tensor, labels: Tensor, context: AttackContext) -> Tensor:
        """Returns triggered cover images; by default the same as triggered training images."""
        return self.apply_train(images, labels, context)

    def drawn(self, shape: torch.Size, context: AttackContext, what: Stream) -> Tensor | None:
        """Returns the random numbers of all poisoned images (`what` is ``streams.POISON``) or of
        all cover images (``streams.COVERS``): a tensor (n, ...), where `shape` is (n, C, H, W).

        None, the default, means that there are none. Where images are triggered one at a time,
        `apply_drawn` gets the row of each image.
        """
        return None

    def apply_drawn(self, images: Tensor, drawn: Tensor) -> Tensor:
        """Returns poisoned or cover images made from `images` with rows of the result of `drawn`,
        one for each image."""
        return self.apply_test(images)

    def choose(self, candidates: Tensor, wanted: int, context: AttackContext) -> Tensor | None:
        """Returns the indices of the training images to poison, sorted; None, the default, means a
        random choice.

        `wanted` is the number of images to choose, and `candidates`, int64 (n,), holds the indices
        to choose from. Only for attacks whose poison comes from one class; for other attacks, the
        number of images per class would not be known beforehand.
        """
        return None

    def prepare(self, context: AttackContext) -> dict[str, Tensor]:
        """Optimizes or trains the trigger before it is applied to any image. Returns the resulting
        tensors by name."""
        return {}

    @property
    def state(self) -> dict[str, Tensor]:
        """The trigger's optimized or trained tensors, as returned by `prepare`. Raises ConfigError
        if `prepare` has not run."""
        found: dict[str, Tensor] | None = self.__dict__.get("_state")
        if found is None:
            raise ConfigError(
                f"`trigger`: {type(self).__name__} must be prepared before it is applied: call"
                " `prepare`"
            )
        return found

    @state.setter
    def state(self, tensors: dict[str, Tensor]) -> None:
        self._state = tensors

    @property
    def same_everywhere(self) -> bool:
        """Whether poison, cover and test images are triggered identically, so that the trigger
        can also be applied to batches after augmentation."""
        kind = type(self)
        plain = (Trigger.apply_train, Trigger.apply_cover)
        return (kind.apply_train, kind.apply_cover) == plain

    def cover_from(self, target: int, source: int | None, classes: int) -> tuple[int, ...]:
        """Returns the labels of the classes from which cover images are drawn; `classes` is the
        number of classes. An empty tuple, the default, means all classes except target and
        source."""
        return ()

    def file_hash(self) -> str:
        """Returns a hash of the files given in `path_options`; an empty string if no file is
        given."""
        return ""

    def check_image_size(self, channels: int, height: int, width: int) -> None:
        """Raises ConfigError, naming the rule, if the trigger does not fit images of this size."""

    def _implemented(self, name: str) -> str:
        """Returns the name of the method that does the work of `name`: `name` itself if this class
        overrides `name`, otherwise the first overridden method that `name` falls back to."""
        chain = ("apply_cover", "apply_train", "apply_test")
        own = (m for m in chain if getattr(type(self), m) is not getattr(Trigger, m))
        return next(m for m in own if chain.index(m) >= chain.index(name))

    def _look_at(self, images: Tensor) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise TypeError(
                "a trigger takes uint8 images of shape (n, 1 or 3, height, width), got"
                f" {images.dtype} of shape {tuple(images.shape)}"
            )
        channels, height, width = images.shape[1:]
        self.check_image_size(channels, height, width)


def gray_levels(name: str, value: Any, *, below: float = math.inf, zero: bool = False) -> float:
    """Returns `value`, a bound on pixel changes in gray levels, as a float.

    Valid values are at least 1 and less than `below`; with `zero`, 0 is valid too. Raises
    ConfigError for all others: a bound between 0 and 1 cannot change an integer image, and is most
    likely a fraction of 255.
    """
    found = validation.number(name, value, low=0, below=below)
    if found < 1 and not (zero and found == 0):
        raise ConfigError(
            f"`{name}` is in gray levels (0..255), and a bound below 1 changes no image: got"
            f" {found:g}; if you meant {max(1, round(255 * found))}/255, give"
            f" {max(1, round(255 * found))}"
        )
    return found


def to_bytes(values: Tensor) -> Tensor:
    """Rounds float images (n, C, H, W) to integers, clips them to 0..255 and returns them as uint8.

    >>> to_bytes(torch.tensor([-3.0, 1.6, 300.0]))
    tensor([  0,   2, 255], dtype=torch.uint8)
    """
    return values.round().clamp(0, 255).to(torch.uint8)


class PixelTrigger(Trigger):
    """Sets single pixels to one color; base class of `Pixel` and `Pattern`.

    `positions` are (row, column) pairs; negative values count from the lower right corner, so that
    (-1, -1) is that corner on every image size. `color` is one value in 0..255 or one per channel;
    for grayscale images the three values are averaged. Each position is moved inward by
    `margin` rows and columns, away from the two edges from which the position is counted.
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
        inward = validation.whole("trigger.margin", margin, low=0, below=2**15)
        self.positions = [_position(pair, inward) for pair in positions]
        self.color = _color(color)

    def apply_test(self, images: Tensor) -> Tensor:
        color = self._color_for(images.shape[1]).to(images.device)
        for row, column in self.positions:
            images[:, :, row, column] = color
        return images

    def check_image_size(self, channels: int, height: int, width: int) -> None:
        for row, column in self.positions:
            if not (-height <= row < height and -width <= column < width):
                raise ConfigError(
                    f"`trigger`: pixel ({row}, {column}) lies outside images of {height}x{width}"
                    " pixels (rows x columns; negative values count from the lower right corner)"
                )

    def _color_for(self, channels: int) -> Tensor:
        color = torch.tensor(self.color, dtype=torch.uint8)
        if channels == 1 and len(color) == 3:
            return color.float().mean().round().to(torch.uint8)[None]
        return color if len(color) == channels else color.expand(channels)


def _position(pair: object, margin: int) -> tuple[int, int]:
    if not isinstance(pair, (list, tuple)) or len(pair) != 2:
        raise ConfigError(f"`trigger`: a position must be [row, column], got {pair!r}")
    counted = (validation.whole("trigger position", value, low=-(2**31)) for value in pair)
    row, column = (each + margin if each >= 0 else each - margin for each in counted)
    return row, column


def _color(color: object) -> list[int]:
    values = color if isinstance(color, (list, tuple)) else [color]
    if len(values) not in (1, 3):
        raise ConfigError(f"`trigger.color` must be one value or three, got {color!r}")
    return [validation.whole("trigger.color", value, low=0, below=256) for value in values]
