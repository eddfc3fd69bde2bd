"""Opens Parquet files with a column of images. Needs pyarrow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from backdoor_lab.core.errors import ConfigError, DataError
from backdoor_lab.core.small_files import check_regular

LFS = b"version https://git-lfs.github.com/spec/"
"""The first bytes of a pointer that git-lfs leaves instead of a file that it did not fetch."""
LFS_ADVICE = "a pointer of git-lfs instead of the file: run `git lfs pull` in the folder"


def pyarrow() -> Any:
    """Returns the module `pyarrow`. Raises ConfigError if it is not installed."""
    try:
        import pyarrow.parquet  # type: ignore[import-untyped]
    except ImportError as error:
        raise ConfigError(
            "Parquet files need pyarrow: install it with `pip install 'backdoor-lab[parquet]'`"
        ) from error
    return pyarrow


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Opens a Parquet file as a `pyarrow.parquet.ParquetFile`. Raises DataError for damaged files,
    also if the damage is found while the file is read."""
    pa = pyarrow()
    check_regular(path)
    try:
        with pa.parquet.ParquetFile(path) as file:
            yield file
    except (DataError, MemoryError):
        raise
    except Exception as error:  # pyarrow raises almost any exception on damaged files
        raise DataError(f"{path}: {_reason(path, error)}") from error


def _reason(path: Path, error: Exception) -> str:
    try:
        with path.open("rb") as stream:
            if stream.read(len(LFS)) == LFS:
                return LFS_ADVICE
    except OSError:
        pass
    return f"not a valid Parquet file: {str(error)[:200]}"


def column_size(file: Any, column: str, group: int) -> int:
    """Returns the number of bytes of a column in one row group, after decompression, as the file
    states it."""
    about = file.metadata.row_group(group)
    chunks = (about.column(at) for at in range(about.num_columns))
    return sum(
        chunk.total_uncompressed_size
        for chunk in chunks
        if chunk.path_in_schema.split(".")[0] == column
    )
