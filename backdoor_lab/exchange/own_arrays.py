"""Checks the arrays of a poisoned data set of this package, whatever layout they come from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backdoor_lab.core.errors import DataError, many
from backdoor_lab.core.types import ImportedAttack
from backdoor_lab.core.validation import LARGEST
from backdoor_lab.data.base import Arrays, Split
from backdoor_lab.exchange.layouts import ELSEWHERE, IS_COVER, IS_POISON, SOURCE_INDEX


def absent(where: object, what: str, there: Iterable[str]) -> DataError:
    """Returns the error for something that is missing; `there` are the names of what is there."""
    return DataError(f"{where}: there is no {what}; found: {', '.join(there) or 'nothing'}")


def no_images(like: NDArray[Any]) -> Split:
    """Returns a split without images, of the shape of the images `like`."""
    return Split(np.empty((0, *like.shape[1:]), np.uint8), np.empty(0, np.int64))


def check_marks(columns: Mapping[str, NDArray[Any]], where: object) -> None:
    """Raises DataError unless the columns of test images say that no image is poisoned or, if they
    have `ELSEWHERE`, those of triggered test images that all are; no image may be a cover."""
    shown = ELSEWHERE in columns
    wrong = {
        IS_POISON: columns[IS_POISON] != shown,
        IS_COVER: columns[IS_COVER],
        SOURCE_INDEX: np.zeros(1, bool) if shown else columns[SOURCE_INDEX] != -1,
    }
    for name, rows in wrong.items():
        kind = "triggered" if shown else "clean"
        _first(rows, f"{where}: `{name}` is not that of {kind} test images")


def checked_arrays(arrays: Arrays, where: object) -> Arrays:
    """Returns `arrays`, whose `attack` must be complete, if all of its arrays fit together.

    Raises DataError, which names the array, for another type (images uint8, labels and indices
    int64, masks bool), another shape or length, labels that are not classes, an image that is both
    poisoned and a cover, an index without a test image, and a `source_index` that is not -1 exactly
    for clean images, or 2**31 or larger.
    """
    attack = arrays.attack or ImportedAttack()
    classes = len(arrays.classes)
    train, test = arrays.train, arrays.test
    shape = _images(train.images, f"{where}: train images")
    n = len(train.images)
    if not n:
        raise DataError(f"{where}: there are no training images")
    _values(train.labels, np.int64, n, f"{where}: train labels", classes)
    masks = [
        _values(values, np.bool_, n, f"{where}: {name}")
        for name, values in (("is_poison", attack.is_poison), ("is_cover", attack.is_cover))
    ]
    _same_shape(test.images, shape, f"{where}: test images")
    _values(test.labels, np.int64, len(test.images), f"{where}: test labels", classes)
    _first(masks[0] & masks[1], f"{where}: `is_poison` and `is_cover` are both true")
    source = _values(attack.source_index, np.int64, n, f"{where}: source_index")
    wrong = np.where(masks[0] | masks[1], (source < 0) | (source >= LARGEST), source != -1)
    rule = "0 or larger for poisoned and cover images, below 2**31, and -1 for clean ones"
    _first(wrong, f"{where}: `source_index` must be {rule}", source)
    if attack.triggered is not None:
        _triggered(attack, len(test.images), shape, classes, where)
    return arrays


def _triggered(
    attack: ImportedAttack, tests: int, shape: tuple[int, ...], classes: int, where: object
) -> None:
    images = attack.triggered
    assert images is not None
    _same_shape(images, shape, f"{where}: triggered images")
    k = len(images)
    _values(attack.wanted, np.int64, k, f"{where}: triggered labels", classes)
    _values(attack.test_index, np.int64, k, f"{where}: test_index of triggered images", tests)
    _values(attack.elsewhere, np.bool_, k, f"{where}: elsewhere of triggered images")


def _images(images: NDArray[Any], where: str) -> tuple[int, ...]:
    if images.dtype != np.uint8:
        raise DataError(f"{where} must be uint8, got {images.dtype}")
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape[1:]:
        raise DataError(
            f"{where} must have the shape (n, C, H, W) with C = 1 or 3, got {images.shape}"
        )
    return images.shape[1:]


def _same_shape(images: NDArray[Any], shape: tuple[int, ...], where: str) -> None:
    found = _images(images, where)
    if found != shape:
        raise DataError(f"{where} must have the shape of train images {shape}, got {found}")


def _values(
    values: NDArray[Any] | None,
    kind: type[np.generic],
    n: int,
    where: str,
    below: int | None = None,
) -> NDArray[Any]:
    """Returns `values`. Raises DataError unless they are an array (n,) of the type `kind`, with
    0 <= values < below if `below` is given."""
    if values is None:
        raise DataError(f"{where} are missing")
    if values.dtype != kind:
        raise DataError(f"{where} must be {np.dtype(kind)}, got {values.dtype}")
    if values.shape != (n,):
        raise DataError(f"{where}: {many(n, 'image')}, but {values.shape} values")
    if below is not None:
        outside = (values < 0) | (values >= below)
        _first(outside, f"{where} must be at least 0 and below {below}", values)
    return values


def _first(wrong: NDArray[Any], said: str, values: NDArray[Any] | None = None) -> None:
    """Raises DataError for the first row that is wrong."""
    if wrong.any():
        row = int(np.argmax(wrong))
        got = "" if values is None else f", got {values[row]}"
        raise DataError(
            f"{said}{got} in row {row}; {int(wrong.sum())} of {many(len(wrong), 'row')}"
        )
