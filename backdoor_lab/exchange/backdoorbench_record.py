"""What the file attack_result.pt of BackdoorBench's record folders states; see backdoorbench.py."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backdoor_lab.core.errors import DataError, many
from backdoor_lab.core.torch_files import load_torch_file

RESULT = "attack_result.pt"
KEYS = ("num_classes", "img_size", "clean_data", "bd_train", "bd_test")
STATE = ("bd_data_container", "original_index_array", "poison_indicator")
SAFE = re.compile(r"\w[\w.-]{0,100}")
"""The names of files and folders that are accepted from a record."""


@dataclass(frozen=True)
class Changed:
    """The changed images of one split: row in the clean split, label, original label and path of
    the PNG file below the record folder. `order` are the rows of the whole split in their order of
    training; `total` is the number of rows of the clean split."""

    total: int
    order: NDArray[np.int64]
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    originals: NDArray[np.int64]
    paths: list[str]


def read_result(root: Path) -> dict[str, Any]:
    """Returns the content of attack_result.pt with the keys in `KEYS`. Raises DataError if one is
    missing or has another type."""
    path = root / RESULT
    found = load_torch_file(path)
    if not isinstance(found, dict):
        raise DataError(f"{path}: expected a dictionary, got {type(found).__name__}")
    _check_keys(found, KEYS, path)
    if whole(found["num_classes"]) is None or found["num_classes"] < 2:
        raise DataError(f"{path}: num_classes must be at least 2, got {found['num_classes']!r}")
    if found["bd_train"] is None:
        raise DataError(f"{path}: holds no poisoned training set (`bd_train` is None)")
    size = found["img_size"]
    if not isinstance(size, list | tuple) or len(size) < 2 or None in map(whole, size):
        raise DataError(f"{path}: img_size must be (height, width, channels), got {size!r}")
    # The record also holds the network, which nothing here needs.
    return {key: found[key] for key in KEYS}


def _check_keys(found: Any, keys: tuple[str, ...], where: object) -> None:
    missing = [key for key in keys if not isinstance(found, dict) or key not in found]
    if missing:
        raise DataError(f"{where}: missing keys: {', '.join(missing)}")


def changed_rows(root: Path, result: dict[str, Any], part: str) -> Changed:
    """Returns what `result` states about `part`, bd_train or bd_test. Raises DataError if it is
    inconsistent."""
    where = f"{root / RESULT}: {part}"
    state = result[part]
    _check_keys(state, STATE, where)
    indicator, order = (_numbers(state[key], f"{where}, {key}") for key in reversed(STATE[1:]))
    container = state["bd_data_container"]
    _check_keys(container, ("data_dict", "save_folder_path"), f"{where}, bd_data_container")
    entries = container["data_dict"]
    if not isinstance(entries, dict):
        raise DataError(f"{where}: data_dict must be a dictionary, got {type(entries).__name__}")
    outside = (order < 0) | (order >= len(indicator))
    if outside.any():
        raise DataError(
            f"{where}: row {order[outside][0]} of original_index_array is not among the"
            f" {many(len(indicator), 'row')}"
        )
    rows, times = np.unique(order, return_counts=True)
    if (times > 1).any():
        raise DataError(
            f"{where}: row {rows[times > 1][0]} is listed twice in original_index_array"
        )
    if not np.isin(indicator, (0, 1)).all():
        raise DataError(f"{where}: poison_indicator must be 0 or 1")
    chosen = order[indicator[order] == 1]
    lacking = [int(row) for row in chosen if int(row) not in entries]
    if lacking:
        raise DataError(
            f"{where}: row {lacking[0]} is poisoned, but data_dict has no entry for it;"
            f" {many(len(lacking), 'row')} in all"
        )
    found = [_entry(entries[int(row)], int(row), result["num_classes"], where) for row in chosen]
    labels, originals = (np.array([each[at] for each in found], np.int64) for at in (0, 1))
    return Changed(len(indicator), order, chosen, labels, originals, [each[2] for each in found])


def _entry(entry: Any, row: int, classes: int, where: str) -> tuple[int, int, str]:
    """Returns label, original label and path below the record folder of one changed image."""
    _check_keys(entry, ("path", "other_info"), f"{where}, row {row}")
    info, path = entry["other_info"], entry["path"]
    if not isinstance(info, list | tuple) or len(info) != 2 or None in map(whole, info):
        raise DataError(f"{where}, row {row}: expected label and original label, got {info!r}")
    if not all(0 <= label < classes for label in info):
        raise DataError(f"{where}, row {row}: labels {info!r} are not below {classes} (classes)")
    parts = re.split(r"[\\/]", path)[-3:] if isinstance(path, str) else []
    # Only the last three parts belong to the record; the rest is a path of another machine.
    if len(parts) != 3 or not all(SAFE.fullmatch(part) for part in parts):
        raise DataError(f"{where}, row {row}: {path!r} is not <folder>/<class>/<row>.png")
    if parts[1:] != [str(info[1]), f"{row}.png"]:
        raise DataError(
            f"{where}, row {row}: expected the image {info[1]}/{row}.png (original class, row), got"
            f" {parts[1]}/{parts[2]}"
        )
    return info[0], info[1], "/".join(parts)


def _numbers(value: Any, where: str) -> NDArray[np.int64]:
    array = np.asarray(value)
    if array.ndim != 1 or array.dtype.kind not in "biuf":
        raise DataError(f"{where}: expected an array of numbers, got {array.dtype} {array.shape}")
    if array.dtype.kind == "f" and not (array == np.floor(array)).all():
        raise DataError(f"{where}: expected whole numbers")
    return array.astype(np.int64)


def whole(value: Any) -> int | None:
    """Returns `value` if it is an integer, else None."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None
