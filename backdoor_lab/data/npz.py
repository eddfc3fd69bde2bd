"""Reads arrays from an .npz file without trusting the sizes stated in its headers."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from backdoor_lab.core.errors import DataError
from backdoor_lab.data.limits import MAX_HEADER, check_memory


def names_in(path: Path) -> list[str]:
    """Returns the names of the arrays in an .npz file. Raises DataError for other files."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except Exception as error:  # zipfile raises almost any exception on damaged archives
        raise _unsound(path, error) from error


def load(path: Path, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Returns the arrays `names` of an .npz file, if they fit into this machine's memory.

    Raises DataError for object arrays, which could run code when loaded, and for a header that
    states more bytes than its array has.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _check(archive, path, names)
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names}
    except (DataError, MemoryError):
        raise
    except Exception as error:  # NumPy raises almost any exception on damaged archives or headers
        raise _unsound(path, error) from error


def _check(archive: zipfile.ZipFile, path: Path, names: Sequence[str]) -> None:
    total = 0
    for name in names:
        info = archive.getinfo(f"{name}.npy" if f"{name}.npy" in archive.namelist() else name)
        with archive.open(info) as stream:
            _check_header(stream)
        with archive.open(info) as stream:
            claimed = _claimed(stream)
        if claimed is not None and claimed != info.file_size:
            raise DataError(
                f"{path}: array `{name}` has {info.file_size:,} bytes, but its header claims"
                f" {claimed:,}"
            )
        total += info.file_size
    check_memory(total, path, "make a smaller file")


def _check_header(stream: IO[bytes]) -> None:
    start = stream.read(12)
    wide = start[6:7] != b"\x01"
    length = int.from_bytes(start[8:12] if wide else start[8:10], "little")
    if length > MAX_HEADER:
        raise ValueError(f"an array's header claims to be {length:,} bytes long")


def _claimed(stream: IO[bytes]) -> int | None:
    """Returns the size in bytes of an array and its header, as stated in the header; None for
    object arrays and for headers of a version other than 1.0 and 2.0."""
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, _, dtype = np.lib.format.read_array_header_2_0(stream)
    else:
        return None
    # The header does not state the size of pickled objects; NumPy refuses them.
    return None if dtype.hasobject else stream.tell() + math.prod(shape) * dtype.itemsize


def _unsound(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: not a valid .npz file of plain arrays: {error}")
