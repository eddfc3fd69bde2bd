"""Validates every data set before anything is trained on it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from backdoor_lab.core.errors import DataError, many
from backdoor_lab.core.types import TRIGGERED, TRUTH, ImportedAttack
from backdoor_lab.data.base import Arrays, Split
from backdoor_lab.data.workspace import Workspace, pieces


def checked(arrays: Arrays, where: str, workspace: Workspace | None = None) -> Arrays:
    """Returns `arrays` as contiguous arrays of `workspace` with int64 labels, if `arrays` meet the
    contract of `types.Dataset`.

    Raises DataError otherwise; the message states the split, the first invalid index and the number
    of invalid values.
    """
    check_classes(arrays.classes, where)
    workspace = workspace or Workspace()
    train = _checked_split(arrays.train, len(arrays.classes), f"{where}, train", workspace)
    test = _checked_split(arrays.test, len(arrays.classes), f"{where}, test", workspace)
    if train.images.shape[1:] != test.images.shape[1:]:
        raise DataError(
            f"{where}: train and test images must have the same shape (C, H, W), "
            f"got {train.images.shape[1:]} and {test.images.shape[1:]}"
        )
    for split, name in ((train, "train"), (test, "test")):
        check_presence(split.labels, arrays.classes, f"{where}, {name}")
    attack = arrays.attack and _checked_attack(arrays.attack, train, test, arrays.classes, where)
    return Arrays(train, test, arrays.classes, attack)


def byte_images(
    images: NDArray[Any], where: str, workspace: Workspace | None = None
) -> NDArray[np.uint8]:
    """Returns images as uint8, in an array of `workspace`; uint8 images are returned unchanged.

    Raises DataError unless all values are whole numbers in 0..255, stored as integers or floats.
    Also raises DataError for float images in which no value exceeds 1, since these are most likely
    scaled to 0..1.
    """
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind not in "iuf":
        raise DataError(f"{where}: images must be uint8, got {images.dtype}")
    bad = ~((images >= 0) & (images <= 255))
    if images.dtype.kind == "f":
        bad |= images != np.floor(images)
    refuse(bad, images, where, "pixel values must be whole numbers from 0 to 255 (uint8)")
    if images.dtype.kind == "f" and images.size and images.max() <= 1:
        raise DataError(
            f"{where}: no {images.dtype} value exceeds 1, so the images seem to be scaled to 0..1; "
            "store (255 * images).round() as uint8"
        )
    found = (workspace or Workspace()).empty(images.shape, where, "store the images as uint8")
    for part in pieces(images.shape, images.itemsize):
        found[part] = images[part]
    return found


def whole_labels(labels: NDArray[Any], where: str) -> NDArray[np.int64]:
    """Returns labels (N,) or (N, 1) as int64 (N,). Raises DataError for invalid class indices."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise DataError(f"{where}: labels must have shape (N,) or (N, 1), got {labels.shape}")
    if labels.dtype.kind not in "iuf":
        raise DataError(f"{where}: labels must be integers, got {labels.dtype}")
    bad = ~((labels >= 0) & (labels < 2**31))
    if labels.dtype.kind == "f":
        bad |= labels != np.floor(labels)
    refuse(bad, labels, where, "labels must be whole numbers, 0 or larger")
    return labels.astype(np.int64)


def refuse(bad: NDArray[np.bool_], values: NDArray[Any], where: str, rule: str) -> None:
    """Raises DataError if any element of `bad` is true. The message states the first such element's
    index and value, and the number of such elements."""
    if not bad.any():
        return
    broken = int(bad.sum())
    first = np.unravel_index(int(np.argmax(bad)), bad.shape)
    place = "[" + ", ".join(str(int(i)) for i in first) + "]"
    raise DataError(
        f"{where}: {rule}, got {values[first]} at index {place}; "
        f"{broken} of {bad.size} {'breaks' if broken == 1 else 'break'} the rule"
    )


def _checked_split(split: Split, class_count: int, where: str, workspace: Workspace) -> Split:
    images, labels = split.images, split.labels
    if images.dtype != np.uint8:
        raise DataError(f"{where}: images must be uint8, got {images.dtype}")
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape:
        raise DataError(
            f"{where}: images must have shape (N, C, H, W) with C = 1 or 3 and no empty axis, "
            f"got {images.shape}"
        )
    labels = whole_labels(labels, where)
    if len(images) != len(labels):
        raise DataError(f"{where}: {many(len(images), 'image')} but {many(len(labels), 'label')}")
    refuse(labels >= class_count, labels, where, f"labels must be below {class_count} (classes)")
    return Split(workspace.contiguous(images), np.ascontiguousarray(labels))


def check_classes(classes: tuple[str, ...], where: str) -> None:
    """Raises DataError unless there are at least two class names, all printable and different."""
    if len(classes) < 2:
        raise DataError(f"{where}: at least 2 classes are needed, got {list(classes)}")
    for index, name in enumerate(classes):
        if not name.strip() or not name.isprintable():
            raise DataError(f"{where}: class {index} needs a printable name, got {name!r}")
        if name in classes[:index]:
            raise DataError(f"{where}: two classes are named {name!r}")


def check_presence(labels: NDArray[Any], classes: tuple[str, ...], where: str) -> None:
    """Raises DataError if a class has no image."""
    counts = np.bincount(labels, minlength=len(classes))
    empty = [classes[index] for index in np.flatnonzero(counts == 0)]
    if empty:
        raise DataError(
            f"{where}: every class needs images; {len(empty)} of {len(classes)} have none: "
            + ", ".join(empty[:10])
        )


def _checked_attack(
    attack: ImportedAttack, train: Split, test: Split, classes: tuple[str, ...], where: str
) -> ImportedAttack:
    """Returns `attack` with contiguous arrays, if they fit the splits. Raises DataError
    otherwise."""
    given = attack.arrays
    for names, n, what in (
        (TRUTH, len(train.labels), "training image"),
        (TRIGGERED, len(given.get("triggered", ())), "triggered test image"),
    ):
        there = [name for name in names if name in given]
        if there and len(there) < len(names):
            lacking = ", ".join(f"`{name}`" for name in names if name not in given)
            raise DataError(f"{where}: the attack has `{there[0]}` but not {lacking}")
        for name in there:
            found = given[name]
            if found.dtype != names[name] or len(found) != n:
                raise DataError(
                    f"{where}: `{name}` must be {names[name]} with one element for each"
                    f" {what} ({n}), got {found.dtype} {found.shape}"
                )
    if "triggered" in given and given["triggered"].shape[1:] != test.images.shape[1:]:
        raise DataError(
            f"{where}: test images and triggered test images must have the same shape (C, H, W),"
            f" got {test.images.shape[1:]} and {given['triggered'].shape[1:]}"
        )
    for name, low, below in (
        ("wanted", 0, len(classes)),
        ("test_index", -1, len(test.labels)),
        ("source_index", -1, 2**31),
    ):
        if (values := given.get(name)) is not None:
            bad = (values < low) | (values >= below)
            refuse(bad, values, f"{where}, {name}", f"values must be from {low} to {below - 1}")
    if "is_poison" in given:
        both = given["is_poison"] & given["is_cover"]
        refuse(both, both, where, "no image may be both poisoned and a cover image")
    return attack.having({name: np.ascontiguousarray(array) for name, array in given.items()})
