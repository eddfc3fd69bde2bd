"""The files in a folder or an archive, read one by one without extracting them."""

from __future__ import annotations

import functools
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backdoor_lab.core.atomic_io import sha256_of
from backdoor_lab.core.errors import DataError
from backdoor_lab.data.limits import MAX_FILES, MAX_VISITS, check_file_size

DEEPEST = 16
"""Maximum depth of nested folders, since links may nest them without end."""

HEAD = 64
"""Number of bytes read from the start of a file to detect its kind."""

Content = bytes | DataError
"""The bytes of a file, or the error raised when reading it."""

_OUTSIDE = re.compile(r"/|[A-Za-z]:|.*(?:^|/)\.{1,2}(?:/|$)", re.DOTALL)


@dataclass(frozen=True)
class Listing:
    """The content of a folder or an archive. `files` maps each relative path to (size in bytes,
    mtime in ns); mtime is 0 in archives. `folders` are the relative paths of all folders."""

    files: dict[str, list[int]] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)

    def note(self, path: str, where: object, file: tuple[int, int] | None = None) -> None:
        """Adds a folder, or a file with its size and mtime. Raises DataError if there are too many
        entries."""
        if file is None:
            self.folders.add(path)
        else:
            self.files[path] = list(file)
        if len(self.files) + len(self.folders) > MAX_FILES:
            raise DataError(f"{where}: contains more than {MAX_FILES:,} files and folders")


class Members(ABC):
    """Base class of objects that read the files of a folder or an archive. Paths are relative and
    use '/'. Methods raise DataError if the data is damaged."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @abstractmethod
    def listing(self) -> Listing:
        """Returns all files and folders."""

    @abstractmethod
    def contents(self, wanted: Container[str]) -> Iterator[tuple[str, Content]]:
        """Yields the files in `wanted`, in the order that is fastest to read."""

    @abstractmethod
    def heads(self, wanted: Container[str]) -> Iterator[tuple[str, bytes]]:
        """Yields the first `HEAD` bytes of the files in `wanted`; skips unreadable files."""

    def identity(self, paths: Iterable[str], listing: Listing | None = None) -> Any:
        """Returns JSON data that identifies the content of the files `paths`: for an archive, its
        hash; for a folder, the path, size and mtime of each file, without reading the files."""
        return hash_of(self.root)


class Folder(Members):
    """A folder on disk. Follows links, since the user controls the folder."""

    def listing(self) -> Listing:
        found = Listing()
        self._seen: set[Path] = set()
        self._again = 0
        try:
            self._scan("", found, ())
        except OSError as error:
            raise DataError(f"{self.root}: cannot be listed: {error}") from error
        return found

    def contents(self, wanted: Container[str]) -> Iterator[tuple[str, Content]]:
        for path, (size, _) in sorted(self.listing().files.items()):
            if path in wanted:
                yield path, self._read(path, size)

    def heads(self, wanted: Container[str]) -> Iterator[tuple[str, bytes]]:
        for path in sorted(self.listing().files):
            if path in wanted:
                try:
                    with (self.root / path).open("rb") as stream:
                        yield path, stream.read(HEAD)
                except OSError:
                    continue

    def identity(self, paths: Iterable[str], listing: Listing | None = None) -> Any:
        files = (listing or self.listing()).files
        return [[path, *files[path]] for path in sorted(paths)]

    def _read(self, path: str, size: int) -> Content:
        try:
            check_file_size(size, self.root / path)
            return (self.root / path).read_bytes()
        except DataError as error:
            return error
        except OSError as error:
            return DataError(f"{self.root / path}: cannot be read: {error}")

    def _scan(self, prefix: str, found: Listing, above: tuple[Path, ...]) -> None:
        here = (self.root / prefix).resolve()
        if here in above:  # a circular link
            return
        if len(above) > DEEPEST:
            raise DataError(
                f"{self.root / prefix}: folders are nested more than {DEEPEST} levels deep"
            )
        self._count(here)
        with os.scandir(here) as entries:
            for entry in entries:
                path = f"{prefix}{entry.name}"
                if entry.is_dir():
                    found.note(path, self.root)
                    self._scan(f"{path}/", found, (*above, here))
                elif entry.is_file():
                    info = entry.stat()
                    found.note(path, self.root, (info.st_size, info.st_mtime_ns))
                elif entry.is_symlink() and not entry.is_dir():
                    # A broken link is listed, so that reading it raises an error; otherwise the
                    # image would go missing silently.
                    found.note(path, self.root, (0, 0))

    def _count(self, here: Path) -> None:
        # Such links multiply: thirteen folders, each with four links to the next, have 4**13 paths.
        self._again += here in self._seen
        self._seen.add(here)
        if self._again > MAX_VISITS:
            raise DataError(
                f"{self.root}: links point more than {MAX_VISITS:,} times to folders that were"
                f" already listed, most recently {here}: remove these links"
            )


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


def hash_of(path: Path) -> str:
    """Returns the SHA-256 of a file. A process computes the hash again only if the file's size or
    mtime has changed."""
    try:
        info = path.stat()
        return _hash_of(path, info.st_size, info.st_mtime_ns)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


@functools.lru_cache(maxsize=64)
def _hash_of(path: Path, size: int, changed: int) -> str:
    return sha256_of(path)
