"""Encodes the accuracy per class and the confusion matrices of a page's cells as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from backdoor_lab.core.errors import DataError
from backdoor_lab.core.terminal import plain
from backdoor_lab.page.page_pictures import FULL
from backdoor_lab.results.metrics import MEASURE
from backdoor_lab.results.per_class import Accuracies, PerClass, per_class_of
from backdoor_lab.tables.markup import NOTHING

OMITTED = f"confusion matrices {FULL}"
Shown = dict[str, Any]


class _Values:
    """Distinct values in the order of their first use, since cells share networks and classes."""

    def __init__(self) -> None:
        self.listed: list[Any] = []
        self.size = 0
        self._known: dict[str, int] = {}

    def add(self, value: Any, most: float = float("inf")) -> int | None:
        """Returns the index of `value`, which is added if it is new. Returns None if `value` is
        None, or if `size`, in bytes, would exceed `most`."""
        if value is None:
            return None
        text = json.dumps(value, separators=(",", ":"))
        if text not in self._known:
            if self.size + len(text) > most:
                return None
            self.size += len(text)
            self._known[text] = len(self.listed)
            self.listed.append(value)
        return self._known[text]


def class_tables(records: Mapping[int, Mapping[str, Any]], budget: int) -> Shown:
    """The accuracy per class and the confusion matrices of `records`, by the number of their cell.
    The matrices take at most `budget` bytes; ``note`` of a cell states what is omitted.

    ``values`` lists the distinct values. ``cells`` maps numbers of cells to the indices of their
    values: ``classes``, ``n_test``, ``nat`` (before and after the defense, as in tables) and
    ``confusion`` (before and after), null for a value that is not known.
    """
    values, cells = _Values(), dict[int, Shown]()
    found: dict[int, PerClass] = {}
    for number, record in records.items():
        with suppress(DataError):
            entry = per_class_of(record)
            found |= {} if entry is None else {number: entry}
    for number, entry in found.items():
        cells[number] = {
            "classes": values.add([plain(name) for name in entry.classes]),
            "n_test": values.add(entry.n_test),
            "nat": [values.add(_texts(each)) for each in (entry.nat1, entry.nat2)],
        }
    most = values.size + budget
    for number, entry in found.items():
        matrices = (entry.confusion1, entry.confusion2)
        shown = [values.add(matrix, most) for matrix in matrices]
        cut = any(at is None and matrix for at, matrix in zip(shown, matrices, strict=True))
        cells[number] |= {"confusion": shown, "note": OMITTED if cut else ""}
    return {"values": values.listed, "cells": cells}


def _texts(accuracies: Accuracies | None) -> list[str] | None:
    if accuracies is None:
        return None
    scale, digits = MEASURE["nat1"].scale, MEASURE["nat1"].digits(1)
    return [NOTHING if each is None else f"{scale * each:.{digits}f}" for each in accuracies]
