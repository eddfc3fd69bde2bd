"""The files of a poisoned data set of this package, which its card lists with their hashes.

Images are PNG files with 8 bits per channel, gray or RGB. Other kinds of images are refused even
where Pillow would convert them: a converted image is not the one that was poisoned.
"""

from __future__ import annotations

import functools
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from backdoor_lab.core.atomic_io import sha256_of
from backdoor_lab.core.errors import DataError, many
from backdoor_lab.data.decode import decode_all
from backdoor_lab.data.limits import check_file_size, check_pixels
from backdoor_lab.data.members import Content, safe_path

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER = 33
_CHANNELS = {0: 1, 2: 3}
"""The color types of PNG without palette and transparency: gray and RGB."""
_KINDS = {3: "a palette", 4: "gray with transparency", 6: "RGB with transparency"}
_REFUSED = {b"acTL": "an animation", b"tRNS": "transparency"}
MISSING = "no such file"
_ADVICE = "copy the set without links (`cp -rL`)"


def files_in(root: Path, names: Iterable[str]) -> None:
    """Raises DataError for the first of the files `names` below `root` that is missing or not a
    regular file, or that a link leads to from inside the folder to another place."""
    for name, size, _ in _stamps(root, names):
        if size < 0:
            raise DataError(f"{root / name}: {MISSING}")


def _stamps(root: Path, names: Iterable[str]) -> Iterator[tuple[str, int, int]]:
    """Yields path, size in bytes and modification time in ns of each file; the size is -1 if
    there is none."""
    base = root.resolve()
    inside = set[Path]()
    for name in names:
        path = root / safe_path(name, root)
        try:
            if path.parent not in inside:
                _check_inside(path.parent, base, root)
                inside.add(path.parent)
            info = path.lstat()
            if stat.S_ISLNK(info.st_mode):
                _check_inside(path, base, root)
                info = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            yield name, -1, 0
            continue
        except (OSError, RuntimeError) as error:  # RuntimeError: a circular link, before 3.13
            raise DataError(f"{path}: cannot be read: {error}") from error
        if not stat.S_ISREG(info.st_mode):
            raise DataError(f"{path}: not a regular file")
        yield name, info.st_size, info.st_mtime_ns


def differing_files(root: Path, expected: Mapping[str, str]) -> list[tuple[str, str]]:
    """Returns the files below `root` that do not have the SHA-256 that `expected` states for their
    path: path, and hash or `MISSING`. In one process, files are read again only if the size or
    the modification time of one of them has changed. Raises the errors of `files_in`, but not for
    missing files."""
    stamps = tuple(_stamps(root, expected))
    return _differing(root.resolve(), stamps, tuple(expected.values()))


def check_hashes(root: Path, expected: Mapping[str, str], card: object) -> None:
    """Raises DataError for the first file below `root` that does not have the SHA-256 that
    `expected` states for its path. `card` is the path of the card that states it."""
    wrong = differing_files(root, expected)
    if wrong:
        name, found = wrong[0]
        more = f"; {many(len(wrong) - 1, 'other file')} differ, too" if len(wrong) > 1 else ""
        raise DataError(
            f"{root / name}: the file was changed or damaged, or `hashes.files` in {card} was"
            f" edited: expected {expected[name]}, found {found}{more}"
        )


@functools.lru_cache(maxsize=8)
def _differing(
    root: Path, stamps: tuple[tuple[str, int, int], ...], expected: tuple[str, ...]
) -> list[tuple[str, str]]:
    wrong = []
    for (name, size, _), value in zip(stamps, expected, strict=True):
        try:
            found = MISSING if size < 0 else sha256_of(root / name)
        except OSError as error:
            raise DataError(f"{root / name}: cannot be read: {error.strerror}") from error
        if found != value:
            wrong.append((name, found))
    return wrong


def contents(root: Path, names: Iterable[str]) -> Iterator[tuple[str, Content]]:
    """Yields path and bytes of each of the files `names` below `root`, which `files_in` has
    checked; the error instead of the bytes for a file that is too large or cannot be read."""
    for name in names:
        path = root / name
        try:
            with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as stream:
                check_file_size(os.fstat(stream.fileno()).st_size, path)
                yield name, stream.read()
        except DataError as error:
            yield name, error
        except OSError as error:
            yield name, DataError(f"{path}: cannot be read: {error.strerror}")


def _check_inside(path: Path, base: Path, root: Path) -> None:
    if not path.resolve(strict=True).is_relative_to(base):
        raise DataError(f"{path}: a link leads out of the folder {root}; {_ADVICE}")


def png_images(
    contents: Iterable[tuple[str, Content]], paths: Sequence[str], where: object
) -> NDArray[np.uint8]:
    """Returns the images at `paths`, in this order: uint8 (n, C, H, W) with C = 1 or 3.

    `contents` yields path and bytes of each image. Raises DataError for a file that is not a PNG
    file with 8 bits per channel, gray or RGB, without palette, transparency and animation, for
    damaged files, and if images have another size or number of channels than the first.
    """
    if not paths:
        return np.empty((0, 1, 1, 1), np.uint8)
    checked = _Checked(contents, str(where))
    first = next(iter(checked), None)
    if first is None:
        raise DataError(f"{where}: there are no images")
    if isinstance(first[1], DataError):
        raise first[1]
    return decode_all(chain([first], checked), paths, str(where), checked.channels, None).images


class _Checked:
    """Yields path and bytes of images; an error instead of the bytes for one that is refused.
    `channels` are those of the first image."""

    def __init__(self, contents: Iterable[tuple[str, Content]], where: str) -> None:
        self._contents, self._where = iter(contents), where
        self.channels, self._size = 0, (0, 0)

    def __iter__(self) -> Iterator[tuple[str, Content]]:
        return self

    def __next__(self) -> tuple[str, Content]:
        path, content = next(self._contents)
        if isinstance(content, DataError):
            return path, content
        try:
            channels, size = _header(content, f"{self._where}: {path}")
        except DataError as error:
            return path, error
        if not self.channels:
            self.channels, self._size = channels, size
        if (channels, size) != (self.channels, self._size):
            found, expected = (
                f"{c} x {s[1]} x {s[0]}" for c, s in ((channels, size), (self.channels, self._size))
            )
            return path, DataError(
                f"{self._where}: {path} has {found} (channels x height x width), but the first"
                f" image has {expected}"
            )
        return path, content


def _header(data: bytes, where: str) -> tuple[int, tuple[int, int]]:
    """Returns the number of channels, and (width, height), of a PNG file."""
    if not data.startswith(_SIGNATURE) or len(data) < _HEADER or data[12:16] != b"IHDR":
        kind = "a JPEG file, which changes pixels" if data[:3] == b"\xff\xd8\xff" else "no PNG file"
        raise DataError(f"{where}: images must be PNG files, got {kind}")
    width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
    bits, color = data[24], data[25]
    if color not in _CHANNELS or bits != 8:
        got = _KINDS.get(color, f"{bits} bits") if color not in _CHANNELS else f"{bits} bits"
        raise DataError(
            f"{where}: images must have 8 bits per channel, gray or RGB without transparency, got"
            f" {got}"
        )
    for name in _chunks(data):
        if name in _REFUSED:
            raise DataError(f"{where}: images must not have {_REFUSED[name]}")
    check_pixels(width, height, where)
    return _CHANNELS[color], (width, height)


def _chunks(data: bytes) -> Iterator[bytes]:
    """Yields the names of the chunks before the pixels."""
    at = len(_SIGNATURE)
    while at + 8 <= len(data) and (name := data[at + 4 : at + 8]) != b"IDAT":
        yield name
        at += 12 + int.from_bytes(data[at : at + 4], "big")
