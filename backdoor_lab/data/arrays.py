"""A data set in one .npz file of plain arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from backdoor_lab.core import validation
from backdoor_lab.core.errors import ConfigError, DataError, many
from backdoor_lab.data.base import (
    Arrays,
    Source,
    Split,
    divided,
    missing_hint,
    name_from,
    path_given,
    sides,
)
from backdoor_lab.data.members import hash_of
from backdoor_lab.data.npz import load, names_in
from backdoor_lab.data.splits import HeldOut
from backdoor_lab.data.validate import byte_images, whole_labels
from backdoor_lab.data.workspace import Workspace

KEYS = {
    "train_images": "x_train",
    "train_labels": "y_train",
    "test_images": "x_test",
    "test_labels": "y_test",
}
"""The required arrays of an .npz file, each with an alternative name that is accepted too."""

LAYOUTS = ("auto", "NHWC", "NCHW")


class ArrayFile(Source):
    """Reads `root`, an .npz file with the arrays of `KEYS` and, optionally, `classes`.

    Images are (N, H, W), (N, H, W, C) or (N, C, H, W) with C 1 or 3. If a shape fits both forms
    with C, `layout` must be NHWC or NCHW. See `validate.byte_images` for accepted values. Labels
    are (N,) or (N, 1). Class names are taken from the parameter `classes`, else from the file, else
    they are "0", "1", ... `size` resizes images as in `ImageFolder`. If the file has no test
    arrays, a fraction `test_share` of every class, drawn with `split_seed`, is held out of the
    training arrays. Raises DataError for object arrays, which could run code when loaded.
    """

    def __init__(
        self,
        *,
        root: str | None = None,
        name: str | None = None,
        layout: str = "auto",
        classes: list[str] | None = None,
        size: int | None = None,
        test_share: float | None = None,
        split_seed: int = 0,
        limit_train: int | None = None,
        limit_test: int | None = None,
    ) -> None:
        self.root = Path(path_given(root, "an .npz file")).expanduser()
        name = name_from(str(self.root)) if name is None else name
        super().__init__(name=name, limit_train=limit_train, limit_test=limit_test)
        self.layout: str = validation.choice("dataset.layout", layout, LAYOUTS)
        self.class_names = None if classes is None else _names(classes)
        self.size, _ = sides(size)
        self.held_out = HeldOut(test_share, split_seed)

    def identity(self) -> dict[str, Any]:
        """Returns the file's hash and the options that determine how it is read; `size` and
        `test_share` only if set."""
        if not self.root.is_file():
            keys = ", ".join(KEYS)
            where = f"{self.root}{missing_hint(self.root)}"
            raise DataError(f"{where}: expected an .npz file with {keys}")
        how = {"layout": self.layout, "classes": self.class_names, **self.held_out.identity()}
        how |= {} if self.size is None else {"size": self.size}
        return {"file": hash_of(self.root), **how}

    def read(self) -> Arrays:
        """Loads and converts all arrays."""
        found = self._load()
        splits = ["train", "test"] if "test_images" in found else ["train"]
        read = [self._split(found, split) for split in splits]
        largest = max(max(split.labels, default=-1) for split in read)
        classes = self._classes(found, int(largest) + 1)
        if len(read) == 1:
            # A data set with fewer names than labels is refused later, by `validate.checked`.
            names = (*classes, *map(str, range(len(classes), int(largest) + 1)))
            read = list(divided(read[0], self.held_out, names, self.workspace))
        return Arrays(read[0], read[1], classes)

    def _load(self) -> dict[str, NDArray[Any]]:
        """Returns the training arrays and, if the file has them, the test arrays and the class
        names. The keys of the result are those in `KEYS`, and "classes"."""
        there = names_in(self.root)
        named = {key: name for key in KEYS for name in (KEYS[key], key) if name in there}
        has_test = bool({"test_images", "test_labels"} & named.keys())
        if not has_test and {"train_images", "train_labels"} <= named.keys():
            self.held_out.check(False, self.root)
        for key in KEYS if has_test or self.held_out.share is None else list(KEYS)[:2]:
            if key not in named:
                raise DataError(
                    f"{self.root}: no array `{key}` (or `{KEYS[key]}`); found: {', '.join(there)}"
                )
        self.held_out.check(has_test, self.root)
        named |= {"classes": "classes"} if "classes" in there else {}
        found = load(self.root, list(named.values()), self.workspace)
        return {key: found[name] for key, name in named.items()}

    def _split(self, found: dict[str, NDArray[Any]], split: str) -> Split:
        where = f"{self.root}, {split}"
        images = byte_images(found[f"{split}_images"], f"{where}_images", self.workspace)
        labels = whole_labels(found[f"{split}_labels"], f"{where}_labels")
        images = channels_first(images, self.layout, f"{where}_images")
        if len(images) != len(labels):
            raise DataError(
                f"{where}: {many(len(images), 'image')} but {many(len(labels), 'label')}"
            )
        return Split(resized(images, self.size, self.workspace), labels)

    def _classes(self, found: dict[str, NDArray[Any]], count: int) -> tuple[str, ...]:
        if self.class_names is not None:
            return tuple(self.class_names)
        if "classes" not in found:
            return tuple(str(index) for index in range(count))
        names = found["classes"]
        if names.ndim != 1 or names.dtype.kind != "U":
            raise DataError(
                f"{self.root}: `classes` must be a 1-D array of strings, got {names.dtype}"
            )
        return tuple(names.tolist())


def channels_first(images: NDArray[Any], layout: str, where: str) -> NDArray[Any]:
    """Converts images (N, H, W), (N, H, W, C) or (N, C, H, W) with C 1 or 3 to (N, C, H, W).

    >>> channels_first(np.zeros((5, 8, 8, 3)), "auto", "images").shape
    (5, 3, 8, 8)
    """
    if images.ndim == 3:
        return images[:, None]
    if images.ndim != 4:
        raise DataError(f"{where}: images must have 3 or 4 axes, got shape {images.shape}")
    first, last = images.shape[1] in (1, 3), images.shape[3] in (1, 3)
    if layout == "auto" and first and last:
        raise DataError(f"{where}: shape {images.shape} fits NHWC and NCHW; set `dataset.layout`")
    if not (first if layout == "NCHW" else last if layout == "NHWC" else first or last):
        raise DataError(f"{where}: expected {layout} with 1 or 3 channels, got {images.shape}")
    as_given = layout == "NCHW" or (layout == "auto" and first)
    return images if as_given else images.transpose(0, 3, 1, 2)


def resized(
    images: NDArray[Any], size: int | None, workspace: Workspace | None = None
) -> NDArray[Any]:
    """Resizes images, uint8 (N, C, H, W), to `size` x `size` as `decode` does, into an array of
    `workspace`; returns them unchanged if `size` is None."""
    if size is None or images.shape[2:] == (size, size) or 0 in images.shape:
        return images
    count, channels = images.shape[:2]
    shape = (count, channels, size, size)
    found = (workspace or Workspace()).empty(shape, "the resized images", "lower `dataset.size`")
    for image, target in zip(images, found, strict=True):
        # Pillow also resizes color images channel by channel.
        for plane, place in zip(image, target, strict=True):
            picture = Image.fromarray(np.ascontiguousarray(plane))
            place[:] = np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR))
    return found


def _names(classes: Any) -> list[str]:
    names = list(classes)
    if not all(isinstance(name, str) for name in names):
        raise ConfigError(f"`dataset.classes` must be a list of strings, got {names!r}")
    return names
