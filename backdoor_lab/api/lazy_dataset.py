"""Poisons a data set image by image, as images are read."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torch.utils.data import Dataset

from backdoor_lab.api.arrays import as_images, as_labels, as_seed
from backdoor_lab.api.attacker import class_count, plan_of, present
from backdoor_lab.api.boundary import boundary
from backdoor_lab.api.named_triggers import as_trigger
from backdoor_lab.api.poisoning import source_index
from backdoor_lab.api.triggers import Trigger
from backdoor_lab.attacks import base
from backdoor_lab.attacks.base import AttackContext
from backdoor_lab.attacks.poison import lay_over, select
from backdoor_lab.core import streams
from backdoor_lab.core.types import LabeledImages

Draws = tuple[Tensor | None, Tensor | None]


class PoisonedDataset(Dataset[tuple[Any, int]]):
    """A poisoned view of a map-style data set, for sets that do not fit into memory.

    Images are read and triggered one at a time, when an item is requested. The items are the rows
    of the result of `backdoor_lab.poison` for the same data, in the same order. The data set can be
    pickled if the given one can, so it works with the workers of a data loader.

    A trigger with a non-empty `requires` must be fitted first. Two kinds of triggers are refused,
    because they optimize all poisoned images together: `label_consistent` and `sleeper_agent`.
    `warp` keeps its noise in memory, 8 bytes for each pixel of each cover image.

    Args:
        dataset: A map-style data set of pairs (image, label). Images are PIL images in mode L or
            RGB, or uint8 tensors or arrays (C, H, W) with C 1 or 3.
        trigger: A trigger from `get_trigger`, its name, or an object of your own subclass of
            `backdoor_lab.attacks.base.Trigger`.
        target: The class that triggered images are to be taken for.
        ratio: The poison ratio in 0..1; the protocol says what it is relative to.
        labels: The true labels, integers (n,) in 0..k-1. None: the attribute ``targets`` or
            ``labels`` of `dataset`, or else the labels of its items, all of which are then read.
        source: The only class whose images are attacked; see `backdoor_lab.poison`.
        protocol: One of ``list_methods("protocols")``, with or without its version.
        transform: Applied to each image after the trigger: a function of a uint8 tensor
            (C, H, W).
        seed: Determines all random numbers of the attack.

    Attributes:
        targets: The training labels, int64 (m,).
        is_poison: bool (m,), which items are poisoned.
        is_cover: bool (m,), which items are cover images, which show the trigger but keep their
            label.
        source_index: int64 (m,), the index in `dataset` of the image that a poisoned image or cover
            image is made from; -1 for clean images.
        protocol: The protocol and its version, such as ``group13@1``.

    Raises:
        ValueError: An argument has the wrong shape, dtype or range, the ratio gives less than one
            image, or the trigger needs all images together.
        TypeError: An argument has the wrong type.
        NotFittedError: The trigger must be fitted first.

    Example:
        >>> import backdoor_lab as bl, torch
        >>> from torch.utils.data import TensorDataset
        >>> images = torch.zeros(20, 3, 8, 8, dtype=torch.uint8)
        >>> clean = TensorDataset(images, torch.arange(20) % 4)
        >>> poisoned = bl.PoisonedDataset(clean, "pixel", target=2, ratio=0.4)
        >>> len(poisoned), poisoned.is_poison.nonzero().flatten().tolist()
        (22, [20, 21])
        >>> image, label = poisoned[20]
        >>> int(image.max()), label
        (255, 2)
    """

    def __init__(
        self, dataset: Any, trigger: Trigger | base.Trigger | str, *, target: int, ratio: float,
        labels: Any = None, source: int | None = None, protocol: str = "group13",
        transform: Callable[[Tensor], Any] | None = None, seed: int = 0,
    ) -> None:  # fmt: skip
        if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
            raise TypeError(f"`dataset` must have a length and items, got {type(dataset).__name__}")
        if transform is not None and not callable(transform):
            raise TypeError(f"`transform` must be callable, got {type(transform).__name__}")
        self.dataset, self.transform = dataset, transform
        # A copy, because the given trigger may be fitted again.
        self.trigger = copy.deepcopy(as_trigger(trigger))
        with boundary():
            _check_one_by_one(self.trigger)
            self._true = _true_labels(dataset, labels)
            classes, method = class_count(self._true), self.trigger.method
            self.protocol, plan = plan_of(method, protocol, target, source, ratio, classes)
            self._pair, self._seed = (plan.target, plan.source), as_seed(seed)
            self.trigger.check_classes(*self._pair)
            self._shape = self._read(0).shape
            method.check_image_size(*self._shape)
            chosen, covers = select(self._true, plan, self._seed, classes)
            self._index, self.targets = lay_over(self._true, chosen, covers, plan, classes)
            self._draws = self._drawn(len(chosen), len(covers))
        n = len(self._true)
        self._poisoned = len(chosen)
        self.source_index = source_index(self._index, n, chosen, covers)
        self.is_cover = self._index >= n + len(chosen)
        self.is_poison = (self._index >= n) & ~self.is_cover

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, item: int) -> tuple[Any, int]:
        """Returns the image with index `item`, a uint8 tensor (C, H, W) or what `transform` makes
        of it, and its training label."""
        item = operator.index(item)
        if not -len(self) <= item < len(self):
            raise IndexError(f"index {item} is out of range: the data set has length {len(self)}")
        origin = int(self.source_index[item])
        if origin < 0:
            image = self._read(int(self._index[item]))
        else:
            row = int(self._index[item]) - len(self._true)
            with boundary():
                image = self._triggered(self._read(origin), origin, row)
        made = image if self.transform is None else self.transform(image)
        return made, int(self.targets[item])

    def _triggered(self, image: Tensor, origin: int, row: int) -> Tensor:
        method, is_cover = self.trigger.method, row >= self._poisoned
        draws = self._draws[is_cover]
        if draws is not None:
            if image.shape != self._shape:
                raise ValueError(
                    f"`dataset`: image {origin} has shape {tuple(image.shape)}, but this trigger"
                    f" needs images of one shape, here {tuple(self._shape)}"
                )
            number = row - self._poisoned * is_cover
            return method.apply_drawn(image[None].clone(), draws[number : number + 1])[0]
        make = method.make_covers if is_cover else method.poisoned
        return make(image[None], self._true[origin : origin + 1], self._context())[0]

    def _drawn(self, poisoned: int, covers: int) -> Draws:
        method, context = self.trigger.method, self._context()
        shapes = (torch.Size((n, *self._shape)) for n in (poisoned, covers))
        first, second = (
            method.drawn(shape, context, what)
            for shape, what in zip(shapes, (streams.POISON, streams.COVERS), strict=True)
        )
        return first, second

    def _context(self) -> AttackContext:
        nothing = LabeledImages(torch.zeros(0, *self._shape, dtype=torch.uint8), self._true[:0], ())
        return AttackContext(nothing, *self._pair, self._seed, partial(present, None))

    def _read(self, index: int) -> Tensor:
        return _image(self.dataset[index][0], index)


def _image(image: Any, index: int) -> Tensor:
    """Returns an item's image as a uint8 tensor (C, H, W)."""
    name = f"dataset[{index}][0]"
    if isinstance(image, PIL.Image.Image):
        if image.mode not in ("L", "RGB"):
            raise ValueError(f"`{name}` must have mode L or RGB, got {image.mode}")
        pixels = np.array(image)
        image = pixels[None] if image.mode == "L" else pixels.transpose(2, 0, 1).copy()
    if isinstance(image, (np.ndarray, Tensor)) and image.ndim != 3:
        raise ValueError(f"`{name}` must have shape (C, H, W), got {tuple(image.shape)}")
    values, _ = as_images(name, image[None] if isinstance(image, (np.ndarray, Tensor)) else image)
    return values[0].as_subclass(Tensor)


def _true_labels(dataset: Any, labels: Any) -> Tensor:
    if labels is None:
        known = (getattr(dataset, name, None) for name in ("targets", "labels"))
        labels = next((each for each in known if each is not None), None)
    if labels is None:
        found = (dataset[k][1] for k in range(len(dataset)))
        labels = [y.item() if isinstance(y, (Tensor, np.generic)) else y for y in found]
    if isinstance(labels, Iterable) and not isinstance(labels, (np.ndarray, Tensor, str)):
        labels = list(labels)
    return as_labels("labels", labels, len(dataset), "dataset")


def _check_one_by_one(trigger: Trigger) -> None:
    """Raises an error if a trigger cannot be applied to one training image at a time."""
    kind = type(trigger.method)
    together = trigger.requires_train and not trigger.requires
    if together or kind.choose is not base.Trigger.choose:
        raise ValueError(
            f"`trigger`: {trigger.name} optimizes all poisoned images together: use"
            " backdoor_lab.poison"
        )
    trigger.check_fitted()
