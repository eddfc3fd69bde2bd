"""A data set in one .npz file of plain arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backdoor_lab import checks
from backdoor_lab.data.base import EMBEDDED, Arrays, Source, Split, name_from, path_given
from backdoor_lab.data.members import hash_of
from backdoor_lab.data.validate import byte_images, whole_labels
from backdoor_lab.errors import ConfigError, DataError

KEYS = {
    "train_images": "x_train",
    "train_labels": "y_train",
    "test_images": "x_test",
    "test_labels": "y_test",
}
"""The arrays that an .npz file must hold, and the other usual name of each."""

LAYOUTS = ("auto", "NHWC", "NCHW")


class ArrayFile(Source):
    """Reads `root`, an .npz file with the arrays of `KEYS` and, optionally, `classes`.

    Images are (N, H, W), (N, H, W, C) or (N, C, H, W) with C 1 or 3; where both of the latter
    fit, `layout` must say which. See `validate.byte_images` for the values. Labels are (N,) or
    (N, 1). Class names come from the parameter `classes`, else from the file, else "0", "1", ...
    Object arrays, which could run code when loaded, are refused.
    """

    def __init__(
        self,
        *,
        root: str | None = None,
        name: str | None = None,
        layout: str = "auto",
        classes: list[str] | None = None,
        limit_train: int | None = None,
        limit_test: int | None = None,
    ) -> None:
        self.root = Path(path_given(root, "an .npz file")).expanduser()
        name = name_from(str(self.root)) if name is None else name
        super().__init__(name=name, limit_train=limit_train, limit_test=limit_test)
        self.layout: str = checks.choice("dataset.layout", layout, LAYOUTS)
        self.class_names = None if classes is None else _names(classes)

    def identity(self) -> dict[str, Any]:
        """The file's hash and how it is read."""
        if not self.root.is_file():
            keys = ", ".join(KEYS)
            raise DataError(f"{self.root}: expected an .npz file with {keys}. {EMBEDDED}")
        return {"file": hash_of(self.root), "layout": self.layout, "classes": self.class_names}

    def read(self) -> Arrays:
        """Loads and converts all arrays."""
        found = _load(self.root)
        train, test = (self._split(found, split) for split in ("train", "test"))
        largest = max(max(split.labels, default=-1) for split in (train, test))
        return Arrays(train, test, self._classes(found, int(largest) + 1))

    def _split(self, found: dict[str, NDArray[Any]], split: str) -> Split:
        where = f"{self.root}, {split}"
        images = byte_images(found[f"{split}_images"], f"{where}_images")
        labels = whole_labels(found[f"{split}_labels"], f"{where}_labels")
        return Split(channels_first(images, self.layout, f"{where}_images"), labels)

    def _classes(self, found: dict[str, NDArray[Any]], count: int) -> tuple[str, ...]:
        if self.class_names is not None:
            return tuple(self.class_names)
        if "classes" not in found:
            return tuple(str(index) for index in range(count))
        names = found["classes"]
        if names.ndim != 1 or names.dtype.kind != "U":
            raise DataError(
                f"{self.root}: `classes` must be a 1-D array of text, got {names.dtype}"
            )
        return tuple(names.tolist())


def channels_first(images: NDArray[Any], layout: str, where: str) -> NDArray[Any]:
    """(N, H, W), (N, H, W, C) or (N, C, H, W) as (N, C, H, W); C is 1 or 3."""
    if images.ndim == 3:
        return images[:, None]
    if images.ndim != 4:
        raise DataError(f"{where}: images must have 3 or 4 axes, got shape {images.shape}")
    first, last = images.shape[1] in (1, 3), images.shape[3] in (1, 3)
    if layout == "auto" and first and last:
        raise DataError(f"{where}: shape {images.shape} fits NHWC and NCHW; set `dataset.layout`")
    if not (first if layout == "NCHW" else last if layout == "NHWC" else first or last):
        raise DataError(f"{where}: {layout} with 1 or 3 channels expected, got {images.shape}")
    as_given = layout == "NCHW" or (layout == "auto" and first)
    return images if as_given else images.transpose(0, 3, 1, 2)


def _names(classes: Any) -> list[str]:
    names = list(classes)
    if not all(isinstance(name, str) for name in names):
        raise ConfigError(f"`dataset.classes` must be a list of text, got {names!r}")
    return names


def _load(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            found = {key: archive[_present(archive.files, key, path)] for key in KEYS}
            if "classes" in archive.files:
                found["classes"] = archive["classes"]
            return found
    except DataError:
        raise
    except Exception as error:  # a damaged archive or header makes NumPy raise nearly anything
        raise DataError(f"{path}: not a sound .npz file of plain arrays: {error}") from error


def _present(files: list[str], key: str, path: Path) -> str:
    for name in (key, KEYS[key]):
        if name in files:
            return name
    raise DataError(f"{path}: no array `{key}` (or `{KEYS[key]}`); it holds {', '.join(files)}")
