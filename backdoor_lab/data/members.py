"""The files inside a folder or an archive, read one by one; nothing is extracted."""

from __future__ import annotations

import functools
import os
from abc import ABC, abstractmethod
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backdoor_lab.core.errors import DataError
from backdoor_lab.core.files import sha256_of
from backdoor_lab.data.limits import MAX_FILES, MAX_VISITS, check_file_size

DEEPEST = 16
"""Folders in a folder of images; a link may lead to anything."""

HEAD = 64
"""Bytes at the start of a file that tell what kind of file it is."""

Content = bytes | DataError
"""A file's bytes, or why that one file cannot be read."""


@dataclass(frozen=True)
class Listing:
    """`files`: relative path -> [size, time of change in ns] (time 0 in archives); `folders`."""

    files: dict[str, list[int]] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)

    def note(self, path: str, where: object, file: tuple[int, int] | None = None) -> None:
        """Adds a folder, or a file with its size and time; DataError when there are too many."""
        if file is None:
            self.folders.add(path)
        else:
            self.files[path] = list(file)
        if len(self.files) + len(self.folders) > MAX_FILES:
            raise DataError(f"{where}: more than {MAX_FILES:,} files and folders")


class Members(ABC):
    """Relative paths with '/' and their bytes. Raises DataError where something is unsound."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @abstractmethod
    def listing(self) -> Listing:
        """Everything inside."""

    @abstractmethod
    def contents(self, wanted: Container[str]) -> Iterator[tuple[str, Content]]:
        """The wanted files in the order in which they are quickest to read."""

    @abstractmethod
    def heads(self, wanted: Container[str]) -> Iterator[tuple[str, bytes]]:
        """The first `HEAD` bytes of the wanted files; nothing of a file that cannot be read."""

    def identity(self, paths: Iterable[str], listing: Listing | None = None) -> Any:
        """What names the content of `paths` without reading them: for an archive, its hash."""
        return hash_of(self.root)


class Folder(Members):
    """A folder on disk; links inside it are followed, as it is the user's own."""

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
        if here in above:  # a link that leads in a circle
            return
        if len(above) > DEEPEST:
            raise DataError(f"{self.root / prefix}: folders lie more than {DEEPEST} deep")
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
                    # It leads nowhere: an error as soon as it is wanted, not one image less.
                    found.note(path, self.root, (0, 0))

    def _count(self, here: Path) -> None:
        # Thirteen folders of four links each to the next are 4**13 paths.
        self._again += here in self._seen
        self._seen.add(here)
        if self._again > MAX_VISITS:
            raise DataError(
                f"{self.root}: links lead more than {MAX_VISITS:,} times to folders that were"
                f" listed before, at last {here}: remove them"
            )


def hash_of(path: Path) -> str:
    """The sha256 of a file, computed once per process unless size or time of change differ."""
    try:
        info = path.stat()
        return _hash_of(path, info.st_size, info.st_mtime_ns)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


@functools.lru_cache(maxsize=64)
def _hash_of(path: Path, size: int, changed: int) -> str:
    return sha256_of(path)
