"""Poisoned training sets in the layout of backdoor-toolbox (Qi et al.).

A folder holds files written by ``torch.save``: `imgs`, a float tensor (n, C, H, W) in 0..1;
`labels`, an integer tensor (n,); `poison_indices` and, for some attacks, `cover_indices`, lists of
rows. Before March 2023, the images were the files data/<row>.png. Triggered test images are not
stored. The clean test images are in another folder, clean_set/<dataset>/test_split, as
data/<index>.png and `labels`.
"""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backdoor_lab.core.errors import DataError, many
from backdoor_lab.core.torch_files import load_torch_file
from backdoor_lab.core.types import ImportedAttack, ImportedFacts
from backdoor_lab.data.base import Arrays, Split
from backdoor_lab.data.splits import HeldOut
from backdoor_lab.exchange.clean import (
    check_shapes,
    class_names,
    clean_test,
    clean_test_identity,
    held_out,
    identity_of,
    is_test_split,
    numbered_pngs,
    stored_array,
    stored_labels,
)

IMAGES = ("imgs", "data")
"""The names of the file or folder of images; the first one that exists is read."""

# badnet_0.010_poison_seed=0, blend_0.010_alpha=0.200_trigger=hellokitty_32.png_poison_seed=0
_NAME = re.compile(r"([A-Za-z]\w*?)_(\d\.\d{3})(?=_|$)")
_OPTION = re.compile(r"_([a-z]+(?:_[a-z]+)*)=(.*?)(?=_[a-z_]+=|$)")
_NUMBER = re.compile(r"\d{1,9}(\.\d{1,9})?")
Truth = tuple[NDArray[np.bool_] | None, NDArray[np.bool_] | None]


def is_toolbox(root: Path) -> bool:
    """Whether `root` looks like a poisoned training set of backdoor-toolbox."""
    return (root / "labels").is_file() and any((root / name).exists() for name in IMAGES)


class Toolbox:
    """A poisoned training set of backdoor-toolbox in the folder `root`.

    The clean test images are those of `test_root`: a folder test_split or a clean data set. If it
    is None, they are those of clean_set/<dataset>/test_split next to poisoned_train_set, where
    backdoor-toolbox writes it; with `held_out`, clean images are held out of the training images.
    Methods raise DataError for missing and damaged files, and if files disagree.
    """

    def __init__(
        self, root: Path, *, test_root: Path | None = None, held_out: HeldOut | None = None
    ) -> None:
        self.root, self.test_root = root, test_root
        self.held_out = None if held_out is None or held_out.share is None else held_out
        if self.held_out is not None and test_root is not None:
            raise DataError(
                f"{root}: dataset.test_root and dataset.test_share both say where the test images"
                " come from: remove one of them"
            )

    def identity(self) -> dict[str, Any]:
        """Returns JSON data that identifies the files that `read` reads; see `identity_of`."""
        names = (_images_name(self.root), "labels", "poison_indices", "cover_indices")
        found = {"train": identity_of(self.root, names)}
        if self.held_out is not None:
            return {**found, **self.held_out.identity()}
        return {**found, "test": clean_test_identity(self._place())}

    def classes(self) -> tuple[str, ...] | None:
        """Returns None: the names of the classes, if there are any, are those of the test
        images."""
        return None

    def facts(self) -> ImportedFacts:
        """Returns what the folder tells about its attack: the name of the folder gives trigger,
        options and seed; the indices give the ratio; the labels of the poisoned images give the
        target, if they are equal."""
        (is_poison, is_cover), labels = self._truth, self._labels
        trigger, ratio, options = _from_name(self.root.resolve().name)
        seed = options.pop("poison_seed", None)
        choices = {}
        wanted: NDArray[np.int64] = np.empty(0, np.int64)
        if is_poison is not None and is_cover is not None:
            ratio, wanted = float(is_poison.mean()), np.unique(labels[is_poison])
            choices = {"cover_rate": float(is_cover.mean())} if is_cover.any() else {}
            options.pop("cover", None)
        target = None
        if len(wanted) == 1:
            classes = self._known_classes()
            target = classes[wanted[0]] if wanted[0] < len(classes) else str(wanted[0])
        return ImportedFacts(
            trigger=trigger,
            options=options,
            target=target,
            ratio=ratio,
            seed=seed if isinstance(seed, int) else None,
            choices=choices,
            n_poisoned=None if is_poison is None else int(is_poison.sum()),
            n_covers=None if is_cover is None else int(is_cover.sum()),
        )

    def read(self) -> Arrays:
        """Returns the data set, with its training images in the stored order.

        The attack trained on the stored floats; they are rounded to 8 bits here.
        """
        labels, (is_poison, is_cover) = self._labels, self._truth
        n = len(labels)
        train = Split(stored_images(self.root, n), labels)
        attack = ImportedAttack()
        if is_poison is not None and is_cover is not None:
            source = np.where(is_poison | is_cover, np.arange(n), -1)
            attack = ImportedAttack(is_poison, is_cover, source)
        if self.held_out is not None:
            self._check_largest(labels)
            names = tuple(map(str, range(int(labels.max(initial=0)) + 1)))
            empty = Split(train.images[:0], labels[:0])
            return held_out(Arrays(train, empty, names, attack), self.held_out, self.root)
        test, known = clean_test(self._place())
        check_shapes(train.images, test.images, self.root)
        largest = self._check_largest(np.concatenate([labels, test.labels]))
        classes = (*(known or ()), *map(str, range(len(known or ()), largest + 1)))
        return Arrays(train, test, classes, attack)

    @cached_property
    def _labels(self) -> NDArray[np.int64]:
        return stored_labels(self.root / "labels")

    @cached_property
    def _truth(self) -> Truth:
        return stored_truth(self.root, len(self._labels))

    def _check_largest(self, labels: NDArray[np.int64]) -> int:
        largest = int(labels.max(initial=0))
        if largest >= len(self._labels):
            raise DataError(
                f"{self.root}: label {largest} of {many(len(self._labels), 'image')}: every class"
                " needs images"
            )
        return largest

    def _place(self) -> Path:
        if self.test_root is not None:
            return self.test_root
        # poisoned_train_set/<dataset>/<name> and clean_set/<dataset>/test_split
        data = self.root.resolve().parent
        usual = data.parent.parent / "clean_set" / data.name / "test_split"
        if is_test_split(usual):
            return usual
        raise DataError(
            f"{self.root}: there are no clean test images: set dataset.test_root to the folder"
            " clean_set/<dataset>/test_split or to a clean data set, or set dataset.test_share=0.2"
            " to hold out a fifth of the clean training images of every class"
        )

    def _known_classes(self) -> tuple[str, ...]:
        """Returns the names of the classes if the clean test images have some."""
        try:
            place = self._place()
        except DataError:
            return ()
        return () if is_test_split(place) else class_names(place)


def _images_name(root: Path) -> str:
    found = next((name for name in IMAGES if (root / name).exists()), None)
    if found is None:
        raise DataError(f"{root}: there are no images: neither `imgs` nor a folder data/")
    return found


def stored_images(root: Path, count: int) -> NDArray[np.uint8]:
    """Returns the images of a poisoned training set with `count` labels: uint8 (count, C, H, W).
    Raises DataError for another number of images, and for damaged files."""
    name = _images_name(root)
    path = root / name
    if path.is_dir():
        return numbered_pngs(root, name, count)
    found = load_torch_file(path)
    shape: tuple[int, ...] = tuple(getattr(found, "shape", ()))
    if len(shape) != 4 or shape[1] not in (1, 3) or 0 in shape:
        raise DataError(
            f"{path}: expected a tensor of images (n, C, H, W) with C = 1 or 3, got"
            f" {shape or type(found).__name__}"
        )
    if shape[0] != count:
        raise DataError(f"{path}: {many(shape[0], 'image')}, but {many(count, 'label')}")
    return bytes_of(np.asarray(found), path)


def bytes_of(images: NDArray[Any], where: object) -> NDArray[np.uint8]:
    """Returns images in 0..1 as uint8, rounded; uint8 images are returned unchanged. Raises
    DataError for other types and for values outside 0..1."""
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind != "f":
        raise DataError(f"{where}: images must be floats in 0..1 or uint8, got {images.dtype}")
    done = np.empty(images.shape, np.uint8)
    for start in range(0, len(images), 1024):
        with np.errstate(over="ignore", invalid="ignore"):
            part = np.rint(images[start : start + 1024] * np.float32(255))
        if not (inside := _inside(part)).all():
            row = start + int(np.argmin(inside))
            raise DataError(
                f"{where}: images must be floats in 0..1, got other values in row {row}"
            )
        done[start : start + 1024] = part
    return done


def _inside(part: NDArray[Any]) -> NDArray[np.bool_]:
    inside = (part >= 0) & (part <= 255)
    return np.asarray(inside.reshape(len(part), -1).all(axis=1))


def stored_truth(root: Path, count: int) -> Truth:
    """Returns the masks of poisoned images and cover images, bool (count,); None without
    poison_indices. Raises DataError for invalid rows."""
    if not (root / "poison_indices").exists():
        return None, None
    is_poison = _mask(root / "poison_indices", count)
    covers = root / "cover_indices"
    is_cover = _mask(covers, count) if covers.exists() else np.zeros(count, bool)
    both = np.flatnonzero(is_poison & is_cover)
    if len(both):
        raise DataError(
            f"{root}: row {both[0]} is in poison_indices and in cover_indices;"
            f" {many(len(both), 'row')} in all"
        )
    return is_poison, is_cover


def _mask(path: Path, count: int) -> NDArray[np.bool_]:
    rows = stored_array(path)
    if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
        raise DataError(f"{path}: expected a list of rows, got {rows.dtype} {rows.shape}")
    outside = (rows < 0) | (rows >= count)
    if outside.any():
        raise DataError(f"{path}: row {rows[outside][0]} is not among the {many(count, 'row')}")
    numbers, times = np.unique(rows.astype(np.int64), return_counts=True)
    if (times > 1).any():
        raise DataError(f"{path}: row {numbers[times > 1][0]} is listed twice")
    mask = np.zeros(count, bool)
    mask[numbers] = True
    return mask


def _from_name(name: str) -> tuple[str | None, float | None, dict[str, Any]]:
    """Returns trigger, ratio and options from the name that backdoor-toolbox gives a folder."""
    found = _NAME.match(name)
    if found is None:
        return None, None, {}
    options = {key: _value(text) for key, text in _OPTION.findall(name[found.end() :])}
    return found[1], float(found[2]), options


def _value(text: str) -> int | float | str:
    if not (found := _NUMBER.fullmatch(text)):
        return text
    return float(text) if found[1] else int(text)
