"""Reads the files in a .tar[.gz|.bz2|.xz] or .zip archive within the bounds in limits.py."""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from backdoor_lab.core.errors import DataError, many
from backdoor_lab.data.base import missing_hint
from backdoor_lab.data.limits import MAX_HEADER, check_file_size
from backdoor_lab.data.members import HEAD, Content, Folder, Listing, Members

TAR = (".tar", ".tar.gz", ".tgz", ".tar.xz")
_PACKED: tuple[tuple[bytes, Any], ...] = (
    (b"\x1f\x8b", gzip.open),
    (b"BZh", bz2.open),
    (b"\xfd7zXZ\0", lzma.open),
    (b"\x5d\0\0", lzma.open),
)
_CHUNK = 1 << 20
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


def members(root: Path) -> Members:
    """Returns the reader for `root`. Raises DataError if no reader supports this file."""
    if root.is_dir():
        return Folder(root)
    if not root.is_file():
        raise DataError(f"{root}: no such folder or archive{missing_hint(root)}")
    name = root.name.lower()
    if name.endswith(TAR):
        return Tar(root)
    if name.endswith(".zip"):
        return Zip(root)
    raise DataError(
        f"{root}: neither a folder nor a supported archive ({', '.join((*TAR, '.zip'))})"
    )


class Tar(Members):
    """A tar archive. Refuses links, devices, sparse files and paths outside the archive."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._places: dict[str, tuple[int, int]] = {}

    def listing(self) -> Listing:
        found = Listing()
        with self._open() as (tar, stream):
            for member in tar:
                tar.fileobj.spent = 0
                if not (member.isdir() or member.isreg()) or member.issparse():
                    kind = "a sparse file" if member.issparse() else "a link or a device"
                    raise DataError(
                        f"{self.root}: member {member.name!r} is {kind}; only plain files and"
                        " folders are read"
                    )
                path = inner_path(member.name, self.root)
                _note(found, path, member.isdir(), member.size, self.root)
                self._places[path] = (member.offset_data, member.size)
                # Otherwise, tarfile would keep all members and headers in memory.
                tar.members = []
                tar.pax_headers.clear()
            _check_end(stream, tar.offset)
        return found

    def contents(self, wanted: Container[str]) -> Iterator[tuple[str, Content]]:
        for path, offset, size, stream in self._wanted(wanted):
            try:
                check_file_size(size, f"{self.root}: {path}")
            except DataError as error:
                yield path, error
            else:
                yield path, _bytes_at(stream, offset, size)

    def heads(self, wanted: Container[str]) -> Iterator[tuple[str, bytes]]:
        for path, offset, size, stream in self._wanted(wanted):
            yield path, _bytes_at(stream, offset, min(size, HEAD))

    def _wanted(self, wanted: Container[str]) -> Iterator[tuple[str, int, int, IO[bytes]]]:
        # The listing has already read all headers. Reading them again would double the time.
        if not self._places:
            self.listing()
        with self._open() as (_, stream):
            for path, (offset, size) in sorted(self._places.items(), key=lambda item: item[1]):
                if path in wanted:
                    yield path, offset, size, stream

    @contextmanager
    def _open(self) -> Iterator[tuple[Any, IO[bytes]]]:
        try:
            with _unpacked(self.root) as stream:
                bounded: Any = _Headers(stream, self.root)
                with tarfile.open(fileobj=bounded, mode="r:") as tar:
                    yield tar, stream
        except _DAMAGE as error:
            raise DataError(f"{self.root}: the archive is damaged or truncated: {error}") from error


class Zip(Members):
    """A zip archive. Refuses links, encrypted members and paths outside the archive."""

    def listing(self) -> Listing:
        found = Listing()
        with self._open() as archive:
            for info in archive.infolist():
                kind = stat.S_IFMT(info.external_attr >> 16)
                if kind not in (0, stat.S_IFREG, stat.S_IFDIR) or info.flag_bits & 1:
                    raise DataError(
                        f"{self.root}: member {info.filename!r} is a link or encrypted; only plain"
                        " files and folders are read"
                    )
                path = inner_path(info.orig_filename, self.root)
                _note(found, path, info.is_dir(), info.file_size, self.root)
                self._compare(archive, info)
        return found

    def contents(self, wanted: Container[str]) -> Iterator[tuple[str, Content]]:
        for path, info, archive in self._wanted(wanted):
            try:
                check_file_size(info.file_size, f"{self.root}: {path}")
                with archive.open(info) as stream:
                    data = _chunked(stream, info.file_size)
                    stream.read(1)  # At the end, zipfile compares the checksum.
                yield path, data
            except DataError as error:
                yield path, error
            except _DAMAGE as error:
                yield path, DataError(f"{self.root}: member {path!r}: {error}")

    def heads(self, wanted: Container[str]) -> Iterator[tuple[str, bytes]]:
        for path, info, archive in self._wanted(wanted):
            try:
                with archive.open(info) as stream:
                    head = stream.read(HEAD)
            except _DAMAGE:
                continue
            yield path, head

    def _wanted(
        self, wanted: Container[str]
    ) -> Iterator[tuple[str, zipfile.ZipInfo, zipfile.ZipFile]]:
        with self._open() as archive:
            for info in archive.infolist():
                path = inner_path(info.orig_filename, self.root)
                if path in wanted:
                    yield path, info, archive

    def _compare(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
        """Opens a member, so that zipfile compares the name in the member's header with the name
        in the central directory of the archive."""
        try:
            archive.open(info).close()
        except _DAMAGE as error:
            raise DataError(f"{self.root}: member {info.filename!r}: {error}") from error

    def _open(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self.root)
        except _DAMAGE as error:
            raise DataError(f"{self.root}: the archive is damaged or truncated: {error}") from error


def inner_path(name: str, archive: Path) -> str:
    """Returns a member's path without '.' parts and repeated slashes. Raises DataError for a path
    that points outside the archive or contains a backslash."""
    parts = name.split("/")
    outside = name.startswith("/") or ".." in parts or re.match(r"[A-Za-z]:", name)
    if "\\" in name and not outside:
        raise DataError(
            f"{archive}: member {name!r} has a backslash in its name: use / between folders"
            " when creating the archive"
        )
    if outside or "\0" in name:
        raise DataError(
            f"{archive}: member {name!r} points outside the archive; the archive is not read"
        )
    return "/".join(part for part in parts if part not in ("", "."))


class _Headers:
    """A stream that limits the size of the headers that tarfile reads for one member, since tarfile
    trusts the sizes stated in them. `spent` is the number of bytes read for the current member."""

    def __init__(self, stream: IO[bytes], where: Path) -> None:
        self._stream, self._where, self.spent = stream, where, 0
        self.seek, self.tell, self.close = stream.seek, stream.tell, stream.close

    def read(self, size: int = -1) -> bytes:
        self.spent += size
        if size < 0 or self.spent > MAX_HEADER:
            raise DataError(
                f"{self._where}: the headers of the member near byte {self.tell() + size:,} are"
                f" longer than {MAX_HEADER:,} bytes, so the archive is not read"
            )
        return self._stream.read(size)


def _unpacked(path: Path) -> IO[bytes]:
    """Opens a file as a stream of decompressed bytes; its first bytes determine the compression."""
    with path.open("rb") as stream:
        head = stream.read(8)
    unpack = next((each for magic, each in _PACKED if head.startswith(magic)), open)
    stream = unpack(path, "rb")
    return stream


def _note(found: Listing, path: str, is_folder: bool, size: int, archive: Path) -> None:
    if not is_folder and path in found.files:
        raise DataError(f"{archive}: two members are named {path!r}")
    found.note(path, archive, None if is_folder else (size, 0))


def _bytes_at(stream: IO[bytes], offset: int, size: int) -> bytes:
    stream.seek(offset)
    return _chunked(stream, size)


def _chunked(stream: IO[bytes], size: int) -> bytes:
    """Reads `size` bytes in pieces, since a stream allocates all requested memory at once."""
    found = bytearray()
    while len(found) < size and (piece := stream.read(min(_CHUNK, size - len(found)))):
        found += piece
    if len(found) < size:
        raise EOFError(f"it is {many(size - len(found), 'byte')} short")
    return bytes(found)


def _check_end(stream: IO[bytes], offset: int) -> None:
    """Raises ReadError unless the rest of the archive, from byte `offset` on, is at least one block
    long and consists of zeros: tarfile stops silently at a damaged header. Reads to the last byte,
    so that the decompressor verifies its checksum."""
    stream.seek(offset)
    block = stream.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE or block.strip(b"\0"):
        raise tarfile.ReadError(f"no end-of-archive marker at byte {offset}")
    while block := stream.read(_CHUNK):
        if block.strip(b"\0"):
            raise tarfile.ReadError("data after the end-of-archive marker")
