"""Reads arrays from an .npz file without trusting the sizes stated in its headers."""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from backdoor_lab.core.errors import DataError
from backdoor_lab.data.limits import MAX_HEADER, check_memory
from backdoor_lab.data.workspace import PIECE, SMALL, Workspace, pieces


def names_in(path: Path) -> list[str]:
    """Returns the names of the arrays in an .npz file. Raises DataError for other files."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except Exception as error:  # zipfile raises almost any exception on damaged archives
        raise _unsound(path, error) from error


def load(
    path: Path, names: Sequence[str], workspace: Workspace | None = None
) -> dict[str, NDArray[Any]]:
    """Returns the arrays `names` of an .npz file, if they fit into this machine's memory.

    With `workspace`, large arrays of bytes are not in memory: they are mapped if they are stored
    without compression, else decompressed into an array of `workspace`.

    Raises DataError for object arrays, which could run code when loaded, and for a header that
    states more bytes than its array has.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _check(archive, path, names, workspace)
            found = {} if workspace is None else _large(archive, path, names, workspace)
        with np.load(path, allow_pickle=False) as arrays:
            return {name: found[name] if name in found else arrays[name] for name in names}
    except (DataError, MemoryError):
        raise
    except Exception as error:  # NumPy raises almost any exception on damaged archives or headers
        raise _unsound(path, error) from error


def _large(
    archive: zipfile.ZipFile, path: Path, names: Sequence[str], workspace: Workspace
) -> dict[str, NDArray[Any]]:
    """Returns those of the arrays `names` that are large and consist of bytes."""
    found: dict[str, NDArray[Any]] = {}
    for name in names:
        info = _member(archive, name)
        if info.file_size <= SMALL:
            continue
        with archive.open(info) as stream:
            shape, in_order, dtype, start = _header(stream)
            if dtype != np.uint8 or not in_order:
                continue
            if info.compress_type == zipfile.ZIP_STORED:
                while stream.read(PIECE):  # checks the CRC
                    pass
                found[name] = np.memmap(path, np.uint8, "r", _start_of(path, info) + start, shape)
                continue
            found[name] = workspace.empty(shape, path, "make a smaller file")
            flat = found[name].reshape(-1)
            for part in pieces(flat.shape):
                flat[part] = np.frombuffer(stream.read(part.stop - part.start), np.uint8)
            stream.read(1)  # checks the CRC
    return found


def _start_of(path: Path, info: zipfile.ZipInfo) -> int:
    """Returns the position of a member's first byte in an archive."""
    with path.open("rb") as stream:
        stream.seek(info.header_offset + 26)
        name, extra = struct.unpack("<HH", stream.read(4))
    return info.header_offset + 30 + int(name) + int(extra)


def _member(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
    return archive.getinfo(f"{name}.npy" if f"{name}.npy" in archive.namelist() else name)


def _check(
    archive: zipfile.ZipFile, path: Path, names: Sequence[str], workspace: Workspace | None
) -> None:
    total = 0
    for name in names:
        info = _member(archive, name)
        with archive.open(info) as stream:
            _check_header(stream)
        with archive.open(info) as stream:
            claimed = _claimed(stream)
        if claimed is not None and claimed != info.file_size:
            raise DataError(
                f"{path}: array `{name}` has {info.file_size:,} bytes, but its header claims"
                f" {claimed:,}"
            )
        total += 0 if workspace is not None and info.file_size > SMALL else info.file_size
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
    shape, _, dtype, start = _header(stream)
    # The header does not state the size of pickled objects; NumPy refuses them.
    return None if dtype.hasobject else start + math.prod(shape) * dtype.itemsize


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Reads the header of an array. Returns the shape, whether the array is in C order, the dtype
    and the length of the header; shape (), and dtype object for a version other than 1.0 and
    2.0."""
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
    else:
        return (), False, np.dtype(object), 0
    return shape, not fortran, dtype, stream.tell()


def _unsound(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: not a valid .npz file of plain arrays: {error}")
