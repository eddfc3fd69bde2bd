"""The files of a poisoned data set of this package, which its card lists with their hashes."""

from __future__ import annotations

import functools
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from backdoor_lab.core.atomic_io import sha256_of
from backdoor_lab.core.errors import DataError
from backdoor_lab.data.limits import check_file_size
from backdoor_lab.data.members import Content

_OUTSIDE = re.compile(r"/|[A-Za-z]:|.*(?:^|/)\.{1,2}(?:/|$)", re.DOTALL)
_ADVICE = "copy the set without links (`cp -rL`)"


def safe_path(name: str, where: object) -> str:
    """Returns `name` if it is the relative path of a file below a folder, with '/' between the
    names of folders. Raises DataError for absolute paths, '..', '.', backslashes and control
    characters. `where` says what names the path, for the message."""
    odd = "\\" in name or not name.isprintable() or "//" in name or name.endswith("/")
    if not name or odd or _OUTSIDE.match(name):
        raise DataError(
            f"{where}: {name!r} is not the path of a file in the folder of the set (relative, with"
            " / between names, without . and ..)"
        )
    return name


def files_in(root: Path, names: Iterable[str]) -> list[tuple[str, int, int]]:
    """Returns path, size in bytes and modification time in ns of the files `names` below `root`.

    Raises DataError for the first file that is missing or not a regular file, or that a link leads
    to from inside the folder to another place.
    """
    base = root.resolve()
    above: dict[Path, None] = {}
    found = []
    for name in names:
        path = root / safe_path(name, root)
        try:
            if path.parent not in above:
                _check_inside(path.parent, base, root)
                above[path.parent] = None
            info = path.lstat()
            if stat.S_ISLNK(info.st_mode):
                _check_inside(path, base, root)
                info = path.stat()
        except OSError as error:
            raise DataError(f"{path}: {error.strerror or error}") from error
        if not stat.S_ISREG(info.st_mode):
            raise DataError(f"{path}: not a regular file")
        found.append((name, info.st_size, info.st_mtime_ns))
    return found


def check_hashes(root: Path, expected: Mapping[str, str], where: object) -> None:
    """Raises DataError for the first file below `root` that does not have the SHA-256 that
    `expected` states for its path; `where` says who states it. In one process, files are read again
    only if the size or the modification time of one of them has changed."""
    stamp = tuple(files_in(root, expected))
    wrong = _differing(root.resolve(), stamp, tuple(sorted(expected.items())))
    if wrong:
        name, found = wrong[0]
        more = f"; {len(wrong)} files differ" if len(wrong) > 1 else ""
        raise DataError(
            f"{root / name}: {where} states another `hashes.files`: expected"
            f" {expected[name]}, found {found}{more}. The file was changed or damaged, or the card"
            " was edited"
        )


@functools.lru_cache(maxsize=8)
def _differing(
    root: Path, stamp: tuple[tuple[str, int, int], ...], expected: tuple[tuple[str, str], ...]
) -> list[tuple[str, str]]:
    wrong = []
    for name, value in expected:
        try:
            found = sha256_of(root / name)
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
