"""Reads the table in a .csv file."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from backdoor_lab.core.errors import DataError, many
from backdoor_lab.core.small_files import DamagedFileError, read_small


def csv_rows(path: Path, *, max_bytes: int) -> tuple[list[str], list[list[str]]]:
    """Returns the header and all further rows of a .csv file. Raises DataError if the file is
    missing, larger than `max_bytes`, not a CSV file in UTF-8, or if a row has more or fewer columns
    than the header."""
    try:
        text = read_small(path, max_bytes=max_bytes).decode("utf-8-sig")
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except DamagedFileError as error:
        raise DataError(str(error)) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a CSV file in UTF-8: {error}") from error
    header = rows[0] if rows else []
    for number, row in enumerate(rows[1:]):
        if len(row) != len(header):
            raise DataError(f"{path}: row {number} has {len(row)} of {many(len(header), 'column')}")
    return header, rows[1:]
