"""Poisons a training set in memory."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import backdoor_lab
from backdoor_lab.api.arrays import as_images, as_labels, as_tensor
from backdoor_lab.api.attacker import Augment, attack_context, class_count, plan_of
from backdoor_lab.api.boundary import boundary, seeded
from backdoor_lab.api.named_triggers import get_trigger
from backdoor_lab.api.networks import Normalize
from backdoor_lab.api.triggers import Trigger
from backdoor_lab.attacks import poison as attacks
from backdoor_lab.core import types
from backdoor_lab.core.atomic_io import readable, room, sha256_of, sync_folder, write_atomic
from backdoor_lab.core.errors import DataError
from backdoor_lab.core.small_files import DamagedFileError, check_regular
from backdoor_lab.results.seal import read_sealed, sealed

ARRAYS = {"images": "u", "labels": "iu", "is_poison": "b", "is_cover": "b", "source_index": "i"}
"""The arrays of a PoisonResult, each with the kinds of its dtype."""
FORMAT = 1
_ARRAYS_FILE, _FACTS_FILE = "poisoned.npz", "poisoned.json"


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
        """Writes the result to an empty or new folder: ``poisoned.npz`` with the arrays and
        ``poisoned.json`` with everything else.

        The JSON file is written last, so that a folder with this file is complete.

        Raises:
            FileExistsError: The folder is not empty, or not a folder.
            StoreFullError: The disk is full.
        """
        path = Path(folder)
        with room(path):
            path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise FileExistsError(f"`folder` must be empty or new, but {path} is not empty")
        arrays = {name: _as_array(getattr(self, name)) for name in ARRAYS}
        tensors = [name for name in ARRAYS if isinstance(getattr(self, name), Tensor)]
        _write(path / _ARRAYS_FILE, arrays)
        facts = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ARRAYS}
        written = {"format": FORMAT, "backdoor_lab": backdoor_lab.__version__, "tensors": tensors}
        written["sha256"] = sha256_of(path / _ARRAYS_FILE)
        write_atomic(path / _FACTS_FILE, sealed(readable(facts | written)).encode())
        sync_folder(path)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> PoisonResult:
        """Reads what `save` wrote. Arrays that were tensors are tensors again, on the CPU.

        Raises:
            ValueError: A file is missing, damaged, or was written by a newer version.
            FileNotFoundError: There is no such folder.
        """
        path = Path(folder)
        if not path.exists():
            raise FileNotFoundError(f"`folder`: {path} does not exist")
        with boundary():
            facts = _facts(path / _FACTS_FILE)
            arrays = _arrays(path / _ARRAYS_FILE, facts["sha256"])
        for name in facts["tensors"]:
            arrays[name] = torch.from_numpy(arrays[name])
        names = [field.name for field in fields(cls)]
        return cls(**arrays, **{name: facts[name] for name in names if name not in arrays})


def poison(
    images: Any, labels: Any, trigger: Trigger | str, *, target: int, ratio: float,
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
        trigger: A trigger from `get_trigger`, or its name. A trigger that must be optimized is
            fitted with the arguments of this function, and can then be applied to test images.
            One on which `fit` was called stays as it is.
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


def as_trigger(trigger: object) -> Trigger:
    """Returns a trigger, given it or its name. Raises TypeError for other types."""
    if isinstance(trigger, str):
        return get_trigger(trigger)
    if not isinstance(trigger, Trigger):
        raise TypeError(
            f"`trigger` must be a name or a trigger from get_trigger, got {type(trigger).__name__}"
        )
    return trigger


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


def _write(path: Path, arrays: dict[str, Any]) -> None:
    with room(path), path.open("xb") as stream:
        try:
            np.savez(stream, **arrays)
            stream.flush()
            os.fsync(stream.fileno())
        except BaseException:
            path.unlink(missing_ok=True)
            raise


def _facts(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise ValueError(f"{path} is missing: the folder holds no complete PoisonResult")
    try:
        facts: dict[str, Any] = json.loads(read_sealed(path))
    except DamagedFileError:
        raise
    except DataError as error:
        raise ValueError(f"{path}: {error}") from error
    if facts.get("format") != FORMAT:
        raise ValueError(
            f"{path} has the format {facts.get('format')!r}; this version reads {FORMAT}"
        )
    return facts


def _arrays(path: Path, sha256: str) -> dict[str, Any]:
    check_regular(path)
    if not path.exists():
        raise ValueError(f"{path} is missing")
    if sha256_of(path) != sha256:
        raise ValueError(f"{path} is damaged: its hash is not the one in {_FACTS_FILE}")
    with np.load(path, allow_pickle=False) as stored:
        found = {name: stored[name] for name in ARRAYS if name in stored}
    m = len(found.get("images", ()))
    for name, kinds in ARRAYS.items():
        each = found.get(name)
        if each is None or each.dtype.kind not in kinds or len(each) != m:
            raise ValueError(f"{path}: `{name}` is missing or has the wrong dtype or length")
    return found
