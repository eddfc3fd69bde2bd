"""Reads poisoned data sets of this package in one file of NumPy arrays, data.npz."""

from __future__ import annotations

from pathlib import Path

from backdoor_lab.core.errors import DataError
from backdoor_lab.core.types import ImportedAttack
from backdoor_lab.data.base import Arrays, Split
from backdoor_lab.data.npz import load, names_in
from backdoor_lab.exchange.layouts import CLASSES, NPZ, TEST_ARRAYS, TRAIN_ARRAYS, TRIGGERED_ARRAYS
from backdoor_lab.exchange.own_arrays import absent, no_images


def is_npz(root: Path) -> bool:
    """Whether `root` holds the file of this layout."""
    return (root / NPZ).is_file()


def read_npz(root: Path, classes: tuple[str, ...]) -> tuple[Arrays, list[str]]:
    """Returns the poisoned set in `root`, as its file states it, and the name of that file. Raises
    DataError for missing arrays and for files that could run code; `own_arrays` checks the rest.
    The names of the classes are those of the file, not `classes`."""
    path = root / NPZ
    there = names_in(path)
    wanted = [*TRAIN_ARRAYS, CLASSES]
    for group in (TEST_ARRAYS, TRIGGERED_ARRAYS):
        wanted += group if set(group) & set(there) else ()
    for name in wanted:
        if name not in there:
            raise absent(path, f"array `{name}`", there)
    found = load(path, wanted)
    names = found[CLASSES]
    if names.ndim != 1 or names.dtype.kind != "U":
        raise DataError(f"{path}: `classes` must be a list of strings, got {names.dtype}")
    test = Split(*map(found.__getitem__, TEST_ARRAYS)) if TEST_ARRAYS[0] in found else None
    images, labels, *marks = (found[name] for name in TRAIN_ARRAYS)
    triggered = map(found.get, TRIGGERED_ARRAYS)
    attack = ImportedAttack(*marks, *triggered)  # type: ignore[arg-type]
    known = tuple(names.tolist())
    return Arrays(Split(images, labels), test or no_images(images), known, attack), [NPZ]
