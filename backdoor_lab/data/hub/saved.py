"""Data sets that `save_to_disk` of the library `datasets` wrote. Needs this library."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from backdoor_lab.core.errors import ConfigError, DataError
from backdoor_lab.core.small_files import read_json
from backdoor_lab.data.hub.found import Asked
from backdoor_lab.data.hub.tables import Table
from backdoor_lab.data.members import safe_path

SPLITS, STATE, INFO = "dataset_dict.json", "state.json", "dataset_info.json"
_END = b"\xff\xff\xff\xff\0\0\0\0"
"""The last bytes of a complete Arrow stream. Without them, rows at the end would be missing."""


class SavedTable(Table):
    """The rows of one split, memory-mapped."""

    def __init__(self, root: Path, folder: str, split: str, library: Any) -> None:
        self.folder, self._split = folder, split
        place = root / folder
        names = _arrow_files(place)
        inside = [*names, STATE, INFO]
        self.files = [f"{folder}/{name}" if folder else name for name in inside]
        for name in names:
            _check_end(place / name)
        try:
            found = library.Dataset.load_from_disk(str(place.resolve()), keep_in_memory=False)
            self._rows = found.with_format("arrow")
            self.schema = found.features.arrow_schema
        except Exception as error:  # the library raises almost any exception on damaged files
            raise DataError(
                f"{place}: `datasets` cannot read these files: {str(error)[:200]}"
            ) from error

    def batches(self, column: str, size: int) -> Iterator[tuple[str, int, Any]]:
        row = 0
        for table in self._rows.select_columns([column]).iter(size):
            values = table.column(0).combine_chunks()
            yield self._split, row, values
            row += len(values)


def is_saved(root: Path) -> bool:
    """Whether `root` holds a data set of `save_to_disk`, with one or several splits."""
    return (root / SPLITS).is_file() or (root / STATE).is_file()


def saved_tables(root: Path, asked: Asked) -> tuple[dict[str, SavedTable], list[str]]:
    """Returns a table for "train" and, if there is one, for "test", and the names of all splits. A
    data set without named splits is the training split. Raises DataError for damaged files, and
    ConfigError without the library `datasets`."""
    library = _datasets()
    if "::" in str(root.resolve()):
        raise DataError(f"{root}: `datasets` cannot read from a path with `::`: rename the folder")
    if not (root / SPLITS).is_file():
        return {"train": SavedTable(root, "", asked.train_split, library)}, [asked.train_split]
    there = _splits(root)
    asked.check(there, root)
    return {
        key: SavedTable(root, name, name, library)
        for key, name in asked.splits.items()
        if name in there
    }, there


def _datasets() -> Any:
    try:
        import datasets  # type: ignore[import-untyped]
    except ImportError as error:
        raise ConfigError(
            "data sets of `save_to_disk` need the library `datasets`: install it with"
            " `pip install 'backdoor-lab[datasets]'`, or write them as Parquet files"
        ) from error
    return datasets


def _splits(root: Path) -> list[str]:
    path = root / SPLITS
    found = read_json(path)
    names = found.get("splits") if isinstance(found, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{path}: expected the names of the splits as a list `splits`")
    return [safe_path(name, path) for name in names]


def _arrow_files(place: Path) -> list[str]:
    path = place / STATE
    try:
        found = read_json(path)
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: no such file, so {place} is not a split of `save_to_disk`"
        ) from error
    files = found.get("_data_files") if isinstance(found, dict) else None
    names = [each.get("filename") for each in files or () if isinstance(each, dict)]
    texts = [safe_path(name, path) for name in names if isinstance(name, str)]
    if not texts or len(texts) < len(names):
        raise DataError(f"{path}: expected the names of the files as a list `_data_files`")
    return texts


def _check_end(path: Path) -> None:
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(max(0, size - len(_END)))
            end = stream.read()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    if end != _END:
        raise DataError(f"{path}: the file is truncated: copy or write the data set again")
