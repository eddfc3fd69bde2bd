"""Reads the accuracy per class and the confusion matrices of a record."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from backdoor_lab.core.errors import DataError
from backdoor_lab.core.validation import non_negative
from backdoor_lab.results.metrics import BY_CLASS

Accuracies = tuple[float | None, ...]
Counts = tuple[int, ...]
_KEY = "per_class"
_LARGEST = 2**53


@dataclass(frozen=True)
class PerClass:
    """The entry ``per_class`` of a record, for k classes.

    `n_test` (k,): numbers of clean test images. `nat1` and `nat2` (k,): the accuracy on them,
    before and after the defense; None for a class without test images. `confusion1` and
    `confusion2` (k, k): numbers of test images by their true class (row) and their predicted class
    (column); None if there are too many classes. `nat2` and `confusion2` are None without a second
    network.
    """

    classes: tuple[str, ...]
    n_test: Counts
    nat1: Accuracies
    nat2: Accuracies | None
    confusion1: tuple[Counts, ...] | None
    confusion2: tuple[Counts, ...] | None

    @property
    def measures(self) -> dict[str, float]:
        """The accuracies by the names of their measures. Classes without test images are
        omitted."""
        found: dict[str, float] = {}
        for prefix, values in zip(BY_CLASS, (self.nat1, self.nat2 or ()), strict=True):
            of = zip(_measure_names(prefix, self.classes), values, strict=False)
            found |= {name: value for name, value in of if value is not None}
        return found


def per_class_of(record: Mapping[str, Any]) -> PerClass | None:
    """Returns the entry ``per_class`` of a record; None if the record has none, as older records
    and those of data sets with many classes. Raises DataError if the entry is invalid."""
    given = record.get(_KEY)
    if given is None:
        return None
    if not isinstance(given, dict):
        raise DataError(f"`{_KEY}` must be a JSON object, got {type(given).__name__}")
    classes = given.get("classes")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise DataError(f"`{_KEY}.classes` must be a list of names")
    k = len(classes)
    sizes, first = _counts(given, "n_test", k), _accuracies(given, "nat1", k)
    if sizes is None or first is None:
        raise DataError(f"`{_KEY}` must have `n_test` and `nat1`")
    return PerClass(
        tuple(classes), sizes, first, _accuracies(given, "nat2", k),
        _matrix(given, "confusion1", k), _matrix(given, "confusion2", k),
    )  # fmt: skip


@functools.lru_cache(64)
def _measure_names(prefix: str, classes: tuple[str, ...]) -> tuple[str, ...]:
    # Text in a JSON file may contain lone surrogates, which no other file can store.
    written = (name.encode("utf-8", errors="backslashreplace").decode() for name in classes)
    return tuple(sys.intern(prefix + name) for name in written)


def _accuracies(given: Mapping[str, Any], key: str, k: int) -> Accuracies | None:
    values = _list(given.get(key), f"{_KEY}.{key}", k)
    return None if values is None else tuple(
        None if value is None else _number(f"{key}[{at}]", value, 1)
        for at, value in enumerate(values)
    )  # fmt: skip


def _matrix(given: Mapping[str, Any], key: str, k: int) -> tuple[Counts, ...] | None:
    rows = _list(given.get(key), f"{_KEY}.{key}", k)
    if rows is None:
        return None
    found = [_counts({key: row}, key, k) for row in rows]
    if None in found:
        raise DataError(f"`{_KEY}.{key}` must have {k} rows of {k} numbers")
    return tuple(row for row in found if row is not None)


def _counts(given: Mapping[str, Any], key: str, k: int) -> Counts | None:
    values = _list(given.get(key), f"{_KEY}.{key}", k)
    return None if values is None else tuple(
        int(_number(f"{key}[{at}]", value, _LARGEST)) for at, value in enumerate(values)
    )  # fmt: skip


def _list(value: Any, where: str, k: int) -> list[Any] | None:
    if value is not None and (not isinstance(value, list) or len(value) != k):
        raise DataError(f"`{where}` must be a list of {k} values, one for each class")
    return value


def _number(where: str, value: Any, high: float) -> float:
    found = non_negative(value, high=high)
    if found is None:
        raise DataError(f"`{_KEY}.{where}` must satisfy 0 <= value <= {high:g}, got {value!r}")
    return found
