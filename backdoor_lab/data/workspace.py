"""Large arrays of images, kept in files instead of in memory while a data set is read.

A file is memory-mapped: the kernel writes its pages to the disk and drops them when memory is
needed, so they do not count as memory that the process requires (RssAnon).
"""

from __future__ import annotations

import io
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from backdoor_lab.core.atomic_io import room
from backdoor_lab.core.lazy import Tensor, torch
from backdoor_lab.core.tensor_io import write_array
from backdoor_lab.data.limits import check_memory

SMALL, SMALL_UNNAMED = 1 << 22, 1 << 26
"""Arrays of at most this many bytes are kept in memory; the second number holds for arrays whose
files would be in the folder for temporary files."""
PIECE = 1 << 22
"""The number of bytes that are copied, converted or hashed at a time."""

Images = NDArray[np.uint8]


def pieces(shape: tuple[int, ...], itemsize: int = 1) -> Iterator[slice]:
    """Yields slices of the first axis, each of at most `PIECE` bytes or one row, that cover an
    array."""
    step = max(1, PIECE // max(1, math.prod(shape[1:]) * itemsize))
    for start in range(0, shape[0], step):
        yield slice(start, min(shape[0], start + step))


class Workspace:
    """Creates the arrays into which a data set is read.

    `folder` receives the files of large arrays; with None, these files are unnamed and in the
    folder for temporary files (``TMPDIR``).
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._files: dict[int, Path] = {}

    def empty(self, shape: tuple[int, ...], where: object, remedy: str) -> Images:
        """Returns an uninitialized array, uint8 of shape `shape`.

        Raises StoreFullError if the disk of `folder` has too little space. If the folder for
        temporary files has too little, the array is in memory; then raises DataError, with `where`
        and `remedy` in the message, if it does not fit.
        """
        size = math.prod(shape)
        if size > SMALL and self.folder is not None:
            return self._named(shape, self.folder)
        if size > SMALL_UNNAMED and self.folder is None:
            with suppress(OSError):
                return _unnamed(shape)
        check_memory(size, where, remedy)
        return np.empty(shape, np.uint8)

    def tensor(self, shape: tuple[int, ...], where: object) -> Tensor:
        """Returns an uninitialized array as a tensor; arguments and errors as for `empty`."""
        found: Tensor = torch.from_numpy(self.empty(shape, where, "lower `ratio`"))
        return found

    def contiguous(self, images: Images) -> Images:
        """Returns `images` as a C-contiguous array: itself if possible, else a copy."""
        if images.flags.c_contiguous or images.nbytes <= SMALL:
            return np.ascontiguousarray(images)
        return self.rows(images, np.arange(len(images)))

    def rows(self, images: Images, where: NDArray[Any]) -> Images:
        """Returns a copy of the rows `where` of `images`, given as a mask or as indices."""
        places = np.flatnonzero(where) if where.dtype == bool else where
        found = self.empty((len(places), *images.shape[1:]), "the images", "free some memory")
        for part in pieces(found.shape):
            found[part] = images[places[part]]
        return found

    def write(self, arrays: dict[Path, NDArray[Any]]) -> None:
        """Write each array to its .npy file. Afterwards, large arrays must not be used any more:
        where possible, their own file becomes the .npy file."""
        own = {path: self._file_of(array) for path, array in arrays.items()}
        taken = set[Path]()
        for path, array in sorted(arrays.items(), key=lambda each: own[each[0]] is not None):
            source = own[path]
            if source is None or source in taken:
                write_array(path, array)
                continue
            taken.add(source)
            _shorten(source, array)
            os.replace(source, path)
        self.close()

    def close(self) -> None:
        """Remove the files of all arrays, which must not be used any more."""
        for path in self._files.values():
            path.unlink(missing_ok=True)
        self._files.clear()

    def _named(self, shape: tuple[int, ...], folder: Path) -> Images:
        path = folder / f".images-{len(self._files)}.npy"
        head = _header(shape)
        size = len(head) + math.prod(shape)
        with room(path, size), path.open("wb") as stream:
            stream.write(head)
            stream.flush()
            _reserve(stream, math.prod(shape))
        found = np.memmap(path, np.uint8, "r+", len(head), shape)
        self._files[found.ctypes.data] = path
        return found

    def _file_of(self, array: NDArray[Any]) -> Path | None:
        """Returns the file that begins with the rows of `array`."""
        plain = array.dtype == np.uint8 and array.flags.c_contiguous
        return self._files.get(array.ctypes.data) if plain else None


def _unnamed(shape: tuple[int, ...]) -> Images:
    with tempfile.TemporaryFile() as stream:
        _reserve(stream, math.prod(shape))
        return np.memmap(stream, np.uint8, "r+", 0, shape)


def _reserve(stream: IO[bytes], size: int) -> None:
    """Takes the disk space for `size` bytes after those already written. Without this, a full disk
    would kill the process when the array is written to."""
    start = stream.tell()
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(stream.fileno(), start, size)
        return
    for _ in range(0, size, PIECE):  # macOS
        stream.write(bytes(PIECE))
    stream.truncate(start + size)


def _header(shape: tuple[int, ...]) -> bytes:
    stream = io.BytesIO()
    given = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, given)
    return stream.getvalue()


def _shorten(path: Path, array: Images) -> None:
    """Makes `array`, whose rows are the first ones in a .npy file, the whole content of the
    file."""
    # NumPy's headers have the same length for any number of rows.
    head = _header(array.shape)
    with path.open("r+b") as stream:
        stream.write(head)
        stream.truncate(len(head) + array.nbytes)
        stream.flush()
        os.fsync(stream.fileno())
