"""Downloads the official files of a public data set, in one process at a time, and verifies their
hashes.

torchvision's `download_url` transfers the files. pooch could replace only that call, and requires
three more packages (platformdirs, packaging, requests). It offers no lock between processes, no
alternative URLs, no size limit and no resuming, and does not accept a decompressed copy of a file.
"""

from __future__ import annotations

import gzip
import hashlib
import logging
import socket
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

from filelock import FileLock

from backdoor_lab.core.atomic_io import explained, no_room
from backdoor_lab.core.errors import DataError, StoreFullError
from backdoor_lab.data.base import EMBEDDED

log = logging.getLogger(__name__)
TIMEOUT = 15.0
"""Seconds without an answer after which a server counts as unavailable."""

MAX_CONTENT = 1 << 26
"""Maximum size in bytes of a file that is read as a whole to verify it; the largest official file
has 47 million bytes."""


@dataclass(frozen=True)
class Official:
    """A published file: its path below the data root, its MD5 and its URLs.

    `content_md5` is the MD5 of the decompressed content of a .gz file. If it is set, the
    decompressed file, or another .gz of the same content, is accepted too.
    """

    path: str
    md5: str
    urls: tuple[str, ...]
    content_md5: str = ""

    def bytes_in(self, root: Path) -> bytes | None:
        """Returns the content of a valid copy below `root`, or None if there is none. If
        `content_md5` is set, the content is decompressed."""
        path = self.place(root)
        if not self.content_md5:
            return _sound(path, self.md5)
        plain = _sound(self.place(root, ".gz"), self.content_md5)
        return plain or _sound(path, self.content_md5, packed=True)

    def place(self, root: Path, without: str = "") -> Path:
        """Returns the path below `root` where torchvision expects the file. `without`: a file
        extension to remove from this path, such as ``.gz``. If the file is missing there but exists
        directly in `root`, returns the path of the file in `root`."""
        path = root / self.path.removesuffix(without)
        return root / path.name if not path.exists() and (root / path.name).is_file() else path

    def found_in(self, root: Path) -> bool:
        """Whether a copy with the official hash exists below `root`."""
        if self.content_md5:
            return self.bytes_in(root) is not None
        path = self.place(root)
        if not path.is_file():
            return False
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, _md5).hexdigest() == self.md5


def obtain(
    name: str,
    root: Path,
    files: tuple[Official, ...],
    *,
    download: bool,
    ready: Callable[[], bool],
    unpack: Callable[[], None] = lambda: None,
) -> None:
    """Downloads missing or damaged files and unpacks them, unless `ready()` is true already.

    Files left by an interrupted download fail the hash check and are downloaded again. If anything
    fails, raises a DataError that lists the expected files; if the disk is full, a StoreFullError.
    """
    try:
        if ready():
            return
        if not download:
            for file in files:
                _fetch(file, root, download)
        with _locked(root, name), _server_timeout():
            if ready():
                return
            for file in files:
                _fetch(file, root, download)
            unpack()
            if not ready():
                raise OSError(
                    "unpacked files are missing, or their hashes differ from the official ones"
                )
    except (MemoryError, StoreFullError):
        raise
    except Exception as error:  # all failures get the same message
        if isinstance(error, OSError) and no_room(error):
            raise explained(error, root / name) from error
        raise missing(name, root, files, error, download) from error


def missing(
    name: str, root: Path, files: tuple[Official, ...], error: Exception, download: bool
) -> DataError:
    """Returns the error for a data set without valid files. It names the expected files, their
    folder and the remedies."""
    expected = ", ".join(f"{file.path} (md5 {file.md5})" for file in files)
    remedy = "Put them there" if download else "Put them there, or set dataset.download=true"
    return DataError(
        f"data set {name} is not in {root.resolve()}: {error or type(error).__name__}. Expected "
        f"in that folder: {expected}. {remedy}, or set `dataset.root`. {EMBEDDED}"
    )


def _fetch(file: Official, root: Path, download: bool) -> None:
    if file.found_in(root):
        return
    path = root / file.path
    state = "damaged" if path.is_file() else "missing"
    if not download:
        raise FileNotFoundError(f"{file.path} is {state} and dataset.download is false")
    reasons = []
    for url in file.urls:
        log.info("%s is %s; downloading %s", path, state, url)
        try:
            # Check that the server answers before importing torchvision, which takes seconds.
            urlopen(url).close()
            from torchvision.datasets.utils import download_url

            download_url(url, str(path.parent), path.name, file.md5)
            return
        except (OSError, RuntimeError, ValueError) as error:
            if isinstance(error, OSError) and no_room(error):
                raise explained(error, path) from error
            reasons.append(f"{url}: {error}")
    raise OSError("; ".join(reasons))


@contextmanager
def _locked(root: Path, name: str) -> Iterator[None]:
    """Locks one data set in the folder `root`; creates missing folders. On exit, removes the lock
    file and those of the created folders that are still empty."""
    made = [each for each in (root, *root.parents) if not each.exists()]
    root.mkdir(parents=True, exist_ok=True)
    path = root / f".{name}.lock"
    try:
        with FileLock(path):
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
    finally:
        with suppress(OSError):
            for each in made:
                each.rmdir()


@contextmanager
def _server_timeout() -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _sound(path: Path, md5: str, *, packed: bool = False) -> bytes | None:
    if not path.is_file():
        return None
    try:
        with gzip.open(path) if packed else path.open("rb") as stream:
            data: bytes = stream.read(MAX_CONTENT + 1)
    except (OSError, EOFError, ValueError, zlib.error):
        return None
    return data if len(data) <= MAX_CONTENT and _md5(data).hexdigest() == md5 else None


def _md5(data: bytes = b"") -> hashlib._Hash:
    """Returns an MD5 hash object. The official hashes are MD5, which does not protect against
    forged files."""
    return hashlib.md5(data, usedforsecurity=False)
