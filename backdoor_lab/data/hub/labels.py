"""Turns the values of a column of labels into numbers of classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backdoor_lab.core.errors import DataError, many
from backdoor_lab.data.layout import composed

Column = tuple[Sequence[str], Sequence[Any]]
"""The name of each row, and its label: a whole number, a string, or None."""


def encoded(
    columns: Mapping[str, Column], names: tuple[str, ...] | None
) -> tuple[dict[str, NDArray[np.int64]], tuple[str, ...]]:
    """Returns the labels of each split, int64 (n,), and the names of the classes.

    With `names`, a label is the number or the name of a class. Without, the classes are the values
    of all splits, sorted; numbers, and strings that are all numbers, are sorted by value. Raises
    DataError, which names the row, for missing, negative, unknown and mixed labels.
    """
    clean = {split: (rows, _values(rows, labels)) for split, (rows, labels) in columns.items()}
    if names is None:
        known = {label for _, labels in clean.values() for label in labels}
        names = _sorted(known, next((rows[0] for rows, labels in clean.values() if labels), ""))
        numbers: dict[Any, int] = {name: at for at, name in enumerate(names)}
        numbers |= {int(name): at for name, at in numbers.items() if _is_number(name)}
    else:
        numbers = {composed(name): at for at, name in enumerate(names)}
        numbers |= {str(at): at for at in range(len(names)) if str(at) not in numbers}
        numbers |= {at: at for at in range(len(names))}
    return {
        split: _numbers(rows, labels, numbers) for split, (rows, labels) in clean.items()
    }, tuple(composed(name) for name in names)


def _values(rows: Sequence[str], labels: Iterable[Any]) -> list[int | str]:
    found = [composed(each.strip()) if isinstance(each, str) else each for each in labels]
    missing = [at for at, each in enumerate(found) if each is None or each in ("", -1)]
    if missing:
        unlabeled = all(found[at] == -1 for at in missing)
        kind = "-1, which stands for no label" if unlabeled else "missing"
        raise DataError(
            f"{rows[missing[0]]}: the label is {kind}; {len(missing)} of"
            f" {many(len(found), 'row')} have none: choose a split or a column with labels"
            " (`dataset.test_split`, `dataset.label`)"
        )
    for at, each in enumerate(found):
        if isinstance(each, bool) or not isinstance(each, int | str):
            raise DataError(f"{rows[at]}: a label must be a whole number or a string, got {each!r}")
        if isinstance(each, int) and each < 0:
            raise DataError(f"{rows[at]}: a label must not be negative, got {each}")
    return found


def _sorted(known: set[int | str], first: str) -> tuple[str, ...]:
    texts = {each for each in known if isinstance(each, str)}
    if texts and texts != known:
        raise DataError(f"{first}: some labels are strings and some are numbers")
    if all(map(_is_number, texts)):
        return tuple(map(str, sorted(known, key=lambda each: (int(each), str(each)))))
    return tuple(sorted(texts))


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 18


def _numbers(
    rows: Sequence[str],
    labels: Sequence[int | str],
    numbers: Mapping[Any, int],
) -> NDArray[np.int64]:
    for at, label in enumerate(labels):
        if label not in numbers:
            raise DataError(
                f"{rows[at]}: the label {label!r} is not among the classes that the data set names"
            )
    return np.array([numbers[label] for label in labels], np.int64)
