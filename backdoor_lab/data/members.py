"""The files inside a folder, a .tar[.gz|.xz] or a .zip, read one by one; nothing is extracted."""

from __future__ import annotations

import functools
import lzma
import os
import re
import stat
import tarfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backdoor_lab.errors import DataError
from backdoor_lab.files import sha256_of

MAX_BYTES = 1 << 28
"""No image file is larger; what claims to be is refused before it is read."""

DEEPEST = 16
"""Folders in a folder of images; a link may lead to anything."""

TAR = (".tar", ".tar.gz", ".tgz", ".tar.xz")
_DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    RuntimeError,
    NotImplementedError,
    ValueError,
)


@dataclass(frozen=True)
class Listing:
    """`files`: relative path -> [size, time of change in ns] (time 0 in archives); `folders`."""

    files: dict[str, list[int]] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)


class Members(ABC):
    """Relative paths with '/' and their bytes. Raises DataError where something is unsound."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @abstractmethod
    def listing(self) -> Listing:
        """Everything inside."""

    @abstractmethod
    def contents(self, wanted: Container[str]) -> Iterator[tuple[str, bytes]]:
        """The wanted files in the order in which they are quickest to read."""

    def identity(self, paths: Iterable[str], listing: Listing | None = None) -> Any:
        """What names the content of `paths` without reading them: for an archive, its hash."""
        return hash_of(self.root)


def members(root: Path) -> Members:
    """The reader for `root`; DataError when there is nothing that one of them can read."""
    if root.is_dir():
        return Folder(root)
    if not root.is_file():
        raise DataError(f"{root}: no such folder or archive")
    name = root.name.lower()
    if name.endswith(TAR):
        return Tar(root)
    if name.endswith(".zip"):
        return Zip(root)
    raise DataError(f"{root}: not a folder, nor one of {', '.join((*TAR, '.zip'))}")


class Folder(Members):
    """A folder on disk; links inside it are followed, as it is the user's own."""

    def listing(self) -> Listing:
        found = Listing()
        try:
            self._scan("", found, ())
        except OSError as error:
            raise DataError(f"{self.root}: cannot be listed: {error}") from error
        return found

    def contents(self, wanted: Container[str]) -> Iterator[tuple[str, bytes]]:
        for path, (size, _) in sorted(self.listing().files.items()):
            if path in wanted:
                _check_size(size, self.root / path)
                try:
                    data = (self.root / path).read_bytes()
                except OSError as error:
                    raise DataError(f"{self.root / path}: cannot be read: {error}") from error
                yield path, data

    def identity(self, paths: Iterable[str], listing: Listing | None = None) -> Any:
        files = (listing or self.listing()).files
        return [[path, *files[path]] for path in sorted(paths)]

    def _scan(self, prefix: str, found: Listing, above: tuple[Path, ...]) -> None:
        here = (self.root / prefix).resolve()
        if here in above:  # a link that leads in a circle
            return
        if len(above) > DEEPEST:
            raise DataError(f"{self.root / prefix}: folders lie more than {DEEPEST} deep")
        with os.scandir(here) as entries:
            for entry in entries:
                path = f"{prefix}{entry.name}"
                if entry.is_dir():
                    found.folders.add(path)
                    self._scan(f"{path}/", found, (*above, here))
                elif entry.is_file():
                    info = entry.stat()
                    found.files[path] = [info.st_size, info.st_mtime_ns]
                elif entry.is_symlink() and not entry.is_dir():
                    # It leads nowhere: an error as soon as it is wanted, not one image less.
                    found.files[path] = [0, 0]


class Tar(Members):
    """A tar archive. Links, devices, sparse files and names that lead outside are refused."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._places: dict[str, tuple[int, int]] = {}

    def listing(self) -> Listing:
        found = Listing()
        with self._open() as tar:
            for member in tar:
                if not (member.isdir() or member.isreg()) or member.issparse():
                    raise DataError(f"{self.root}: member {member.name!r} is a link or a device")
                path = inner_path(member.name, self.root)
                _note(found, path, member.isdir(), member.size, self.root)
                self._places[path] = (member.offset_data, member.size)
            _check_end(tar)
        return found

    def contents(self, wanted: Container[str]) -> Iterator[tuple[str, bytes]]:
        # Headers were read for the listing; reading them again would take twice as long.
        if not self._places:
            self.listing()
        with self._open() as tar:
            for path, (offset, size) in sorted(self._places.items(), key=lambda item: item[1]):
                if path in wanted:
                    _check_size(size, f"{self.root}: {path}")
                    yield path, _bytes_at(tar, offset, size)

    @contextmanager
    def _open(self) -> Iterator[tarfile.TarFile]:
        try:
            with tarfile.open(self.root, "r:*") as tar:
                yield tar
        except _DAMAGE as error:
            raise DataError(f"{self.root}: the archive is damaged or cut short: {error}") from error


class Zip(Members):
    """A zip archive. Links, encrypted members and names that lead outside are refused."""

    def listing(self) -> Listing:
        found = Listing()
        with self._open() as archive:
            for info in archive.infolist():
                kind = stat.S_IFMT(info.external_attr >> 16)
                if kind not in (0, stat.S_IFREG, stat.S_IFDIR) or info.flag_bits & 1:
                    raise DataError(f"{self.root}: member {info.filename!r} is a link or encrypted")
                path = inner_path(info.orig_filename, self.root)
                _note(found, path, info.is_dir(), info.file_size, self.root)
                self._compare(archive, info)
        return found

    def contents(self, wanted: Container[str]) -> Iterator[tuple[str, bytes]]:
        with self._open() as archive:
            for info in archive.infolist():
                path = inner_path(info.orig_filename, self.root)
                if path in wanted:
                    _check_size(info.file_size, f"{self.root}: {path}")
                    try:
                        data = archive.read(info)
                    except _DAMAGE as error:
                        raise DataError(f"{self.root}: member {path!r}: {error}") from error
                    yield path, data

    def _compare(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
        """A zip's directory has no checksum; opening compares it with the member's own name."""
        try:
            archive.open(info).close()
        except _DAMAGE as error:
            raise DataError(f"{self.root}: member {info.filename!r}: {error}") from error

    def _open(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self.root)
        except _DAMAGE as error:
            raise DataError(f"{self.root}: the archive is damaged or cut short: {error}") from error


def inner_path(name: str, archive: Path) -> str:
    """A member's name without '.' and doubled slashes; DataError if it could lead outside."""
    parts = name.split("/")
    outside = name.startswith("/") or ".." in parts or re.match(r"[A-Za-z]:", name)
    if "\\" in name and not outside:
        raise DataError(
            f"{archive}: member {name!r} has a backslash in its name: pack the archive with /"
            " between folders"
        )
    if outside or "\0" in name:
        raise DataError(
            f"{archive}: member {name!r} leads out of the archive; nothing of it is read"
        )
    return "/".join(part for part in parts if part not in ("", "."))


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


def _note(found: Listing, path: str, is_folder: bool, size: int, archive: Path) -> None:
    if is_folder:
        found.folders.add(path)
    elif path in found.files:
        raise DataError(f"{archive}: two members are named {path!r}")
    else:
        found.files[path] = [size, 0]


def _check_size(size: int, where: object) -> None:
    if size > MAX_BYTES:
        raise DataError(
            f"{where}: {size:,} bytes are too many for an image (at most {MAX_BYTES:,})"
        )


def _bytes_at(tar: tarfile.TarFile, offset: int, size: int) -> bytes:
    stream = tar.fileobj
    assert stream is not None
    stream.seek(offset)
    data: bytes = stream.read(size)
    if len(data) < size:
        raise tarfile.ReadError(f"{size - len(data)} bytes are missing at the end")
    return data


def _check_end(tar: tarfile.TarFile) -> None:
    """tarfile takes a damaged header in mid-archive for its end; only a block of zeros is one.

    Reading on to the last byte also makes the decompressor compare its checksum.
    """
    stream = tar.fileobj
    assert stream is not None
    stream.seek(tar.offset)
    block = stream.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE or block.strip(b"\0"):
        raise tarfile.ReadError(f"no end mark at byte {tar.offset}")
    while block := stream.read(1 << 20):
        if block.strip(b"\0"):
            raise tarfile.ReadError("data after the end mark")
