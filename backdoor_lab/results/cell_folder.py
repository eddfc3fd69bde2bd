"""Reads the record of one completed cell from the cell's folder, for commands that also read the
outputs of its stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from backdoor_lab.core.errors import ConfigError, DataError, StoreError
from backdoor_lab.core.small_files import decode
from backdoor_lab.results.frozen import RECORDS, SWEEP
from backdoor_lab.results.seal import read_sealed
from backdoor_lab.results.store_location import CONFIGURATION, STORE, find_store

RECORD = "record.json"
_SECTIONS = ("choices", "hashes", "config")


def completed_record(cell: Path, wanted: str) -> dict[str, Any]:
    """Returns the record of the cell in the folder `cell`. `wanted` says, in messages, what the
    caller reads: ``weights``.

    Raises ConfigError if there is no record, DataError if the record is damaged or the cell is not
    completed.
    """
    path = cell / RECORD
    try:
        record: dict[str, Any] = decode(read_sealed(path))
        needed = [record["run"]["stages"], *(record[name] for name in _SECTIONS)]
        sound = all(isinstance(each, dict) for each in needed)
        done = record["status"] == "done"
    except FileNotFoundError as error:
        raise ConfigError(f"{cell} is not a cell's folder: {_why_not(cell, wanted)}") from error
    except (DataError, KeyError, TypeError) as error:
        said = str(error).removeprefix(f"{path} is ")
        what = f"it lacks {said}" if isinstance(error, KeyError) else said
        raise DataError(f"{path} is damaged ({what})") from error
    if not sound:
        raise DataError(f"{path} is damaged: it is not a valid record")
    if not done:
        raise DataError(f"{path}: this cell is not done ({record['status']}); it has no {wanted}")
    return record


def store_of(cell: Path, given: Path | None) -> Path:
    """Returns the folder of the store of a cell: `given` or, if that is None, the store that the
    cell's sweep used. Raises StoreError if it does not exist."""
    sweep = cell.resolve().parent
    root = find_store(sweep, given)
    if root is None:
        looked = given or f"{sweep.parent / STORE}, nor at the path in {sweep / CONFIGURATION}"
        raise StoreError(f"there is no store at {looked}: give its path with --store")
    return root


def _why_not(cell: Path, wanted: str) -> str:
    if any((folder / RECORDS).is_file() for folder in (cell, cell.parent)):
        return (
            f"it belongs to a frozen sweep, which has records but no {wanted}; run the sweep again"
            " to compute them"
        )
    if (cell / SWEEP).is_file():
        return "it is a sweep; name the folder of one of its cells"
    return f"it has no {RECORD}"
