"""Poisons a training set in memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from backdoor_lab.api.arrays import as_images, as_labels, as_tensor
from backdoor_lab.api.attacker import Augment, attack_context, class_count, plan_of
from backdoor_lab.api.boundary import boundary, seeded
from backdoor_lab.api.named_triggers import as_trigger
from backdoor_lab.api.networks import Normalize
from backdoor_lab.api.saved import ARRAYS, saved_fields
from backdoor_lab.api.triggers import Trigger
from backdoor_lab.attacks import base
from backdoor_lab.attacks import poison as attacks
from backdoor_lab.core import types
from backdoor_lab.core.types import ImportedAttack
from backdoor_lab.data.base import Arrays, Split
from backdoor_lab.exchange.card import Described
from backdoor_lab.exchange.write import write_set


@dataclass(frozen=True, eq=False)
class PoisonResult:
    """A poisoned training set of m images with its ground truth.

    Attributes:
        images: uint8 (m, C, H, W). Like all arrays here, of the kind (NumPy or torch) and on the
            device of the images given to `poison`.
        labels: The training labels (m,), of the kind and dtype of the labels given to `poison`.
        is_poison: bool (m,), which images are poisoned.
        is_cover: bool (m,), which images are cover images: they show the trigger but keep their
            label.
        source_index: int64 (m,), the index of the clean image that a poisoned image or cover image
            was made from; -1 for clean images.
        protocol: The protocol and its version, such as ``group13@1``.
        trigger: The trigger: its ``name`` and all its options.
        target: The target class.
        source: The only class whose images are attacked; None if there is no such class.
        ratio: The poison ratio.
        seed: The seed.
    """

    images: Any
    labels: Any
    is_poison: Any
    is_cover: Any
    source_index: Any
    protocol: str
    trigger: dict[str, Any]
    target: int
    source: int | None
    ratio: float
    seed: int

    def __repr__(self) -> str:
        name, counts = self.trigger["name"], (int(self.is_poison.sum()), int(self.is_cover.sum()))
        return (
            f"PoisonResult(n={len(self.labels)}, poisoned={counts[0]}, covers={counts[1]},"
            f" trigger={name!r}, target={self.target}, protocol={self.protocol!r})"
        )

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes the result to an empty or new folder: ``data.npz`` with the arrays, ``card.json``
        with everything else, and ``README.md``.

        ``dataset=poisoned dataset.root=FOLDER`` reads this folder on the command line. The folder
        appears when all files are complete.

        Raises:
            FileExistsError: The folder is not empty, or not a folder.
            StoreFullError: The disk is full.
        """
        labels = np.asarray(_as_array(self.labels))
        values = {name: _as_array(getattr(self, name)) for name in ARRAYS[2:]}
        count = max(labels.max(), self.target, -1 if self.source is None else self.source) + 1
        train = Split(_as_array(self.images), labels.astype(np.int64))
        nothing = Split(train.images[:0], train.labels[:0])
        arrays = Arrays(train, nothing, tuple(map(str, range(count))), ImportedAttack(**values))
        tensors = [name for name in ARRAYS if isinstance(getattr(self, name), Tensor)]
        name, _, version = self.protocol.partition("@")
        described = Described(
            None, self.trigger, str(self.target), None if self.source is None else str(self.source),
            self.ratio, self.seed, {"name": name, "version": int(version)}, _normalization(arrays),
            more={"python": {"tensors": tensors, "labels": str(labels.dtype)}},
        )  # fmt: skip
        write_set(Path(folder), arrays, "npz", described)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> PoisonResult:
        """Reads what `save` wrote. Arrays that were tensors are tensors again, on the CPU.

        Raises:
            ValueError: A file is missing, damaged, or was not written by `save` of this version.
            FileNotFoundError: There is no such folder.
        """
        path = Path(folder)
        if not path.exists():
            raise FileNotFoundError(f"`folder`: {path} does not exist")
        with boundary():
            return cls(**saved_fields(path))


def poison(
    images: Any, labels: Any, trigger: Trigger | base.Trigger | str, *, target: int, ratio: float,
    source: int | None = None, protocol: str = "group13", seed: int = 0,
    model: nn.Module | None = None, normalize: Normalize = None, augment: Augment = None,
) -> PoisonResult:  # fmt: skip
    """Poisons a training set.

    The result is the same as that of the command line for the same data, trigger, protocol and
    seed: the same images in the same order. The label mode and the number of cover images are those
    of the trigger's paper.

    Args:
        images: The clean training images, uint8 (n, C, H, W) with C 1 or 3, as a NumPy array or a
            tensor on any device.
        labels: Their labels, integers (n,) in 0..k-1.
        trigger: A trigger from `get_trigger`, its name, or an object of your own subclass of
            `backdoor_lab.attacks.base.Trigger`. A trigger that must be optimized is fitted with the
            arguments of this function, and can then be applied to test images. One on which `fit`
            was called stays as it is.
        target: The class that triggered images are to be taken for.
        ratio: The poison ratio in 0..1. The protocol says what it is relative to; for ``group13``,
            the number of images of the target class.
        source: The only class whose images are attacked. None: every class but the target or, for
            the attacks `tact` and `sleeper_agent`, the class after the target.
        protocol: One of ``list_methods("protocols")``, with or without its version: ``group13`` or
            ``group13@1``.
        seed: Determines all random numbers.
        model: The attacker's surrogate, trained on clean images, for the triggers that require one;
            ignored by the others.
        normalize: What precedes the model; see `backdoor_lab.extract_features`.
        augment: How the victim augments training images; see `Trigger.fit`.

    Raises:
        ValueError: An argument has the wrong shape, dtype or range, a required one is missing, the
            ratio gives less than one image, or the trigger changes no image.
        TypeError: An argument has the wrong type.

    Example:
        >>> import backdoor_lab as bl, numpy as np
        >>> images, labels = np.zeros((20, 3, 8, 8), np.uint8), np.arange(20) % 4
        >>> poisoned = bl.poison(images, labels, "pixel", target=2, ratio=0.4)
        >>> poisoned.images.shape, poisoned.labels[poisoned.is_poison].tolist()
        ((22, 3, 8, 8), [2, 2])
        >>> labels[poisoned.source_index[poisoned.is_poison]].tolist()
        [3, 0]
    """
    with boundary():
        made_from = as_trigger(trigger)
        values, back = as_images("images", images)
        true = as_labels("labels", labels, len(values))
        method, classes = made_from.method, class_count(true)
        named, plan = plan_of(method, protocol, target, source, ratio, classes)
        context = attack_context(
            values, true, plan.target, plan.source, seed, model, normalize, augment
        )
        method.check_image_size(*context.train.shape)
        context = made_from.ready_for(context, model)
        with seeded(context.seed) if made_from.requires_train else nullcontext():
            made = attacks.poison(context.train, method, plan, seed=context.seed, context=context)
        chosen = made.source_index
        if len(chosen) and torch.equal(made.training.rows[: len(chosen)], values[chosen]):
            raise attacks.no_change(made_from.name)
        return PoisonResult(
            *_converted(made, labels, back), protocol=named, trigger=made_from.described(),
            target=plan.target, source=plan.source, ratio=plan.ratio, seed=context.seed,
        )  # fmt: skip


def source_index(index: Tensor, n: int, chosen: Tensor, covers: Tensor) -> Tensor:
    """Returns the index of the clean image that each training image was made from, -1 for clean
    images: int64 (m,). `index`: as in TrainingSet. `n`: number of clean images. `chosen` and
    `covers`: the indices of the images that were poisoned and turned into cover images."""
    made = index >= n
    found = torch.full_like(index, -1)
    found[made] = torch.cat([chosen, covers])[index[made] - n]
    return found


def _converted(
    made: types.PoisonResult, labels: object, back: Callable[[Tensor], Any]
) -> tuple[Any, Any, Any, Any, Any]:
    training = made.training
    images = training.gather(torch.arange(len(training)))
    origin = source_index(training.index, len(training.base), made.source_index, made.cover_index)
    given, same = training.labels, back
    if not isinstance(labels, list):
        like, same = as_tensor("labels", labels)
        given = given.to(like.dtype)
    return back(images), same(given), back(made.is_poison), back(made.is_cover), back(origin)


def _as_array(values: Any) -> Any:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else values


def _normalization(arrays: Arrays) -> dict[str, list[float]] | None:
    """The statistics of the clean training images; None if poison has replaced some of them."""
    from backdoor_lab.training.evaluate import channel_stats

    attack = arrays.attack
    assert attack is not None
    made = np.asarray(attack.is_poison) | np.asarray(attack.is_cover)
    if (np.asarray(attack.source_index)[made] == np.flatnonzero(made)).any():
        return None
    stats = channel_stats(torch.from_numpy(arrays.train.images[~made]))
    return dict(zip(("mean_255", "std_255"), (x.double().tolist() for x in stats), strict=True))
