"""Atomic file writes: a reader sees the complete old file or the complete new one."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from backdoor_lab.core.errors import StoreError, StoreFullError

_NUMBERS = re.compile(r"\[\n([-+.,\w\s]*?)\n\s*\]")
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# Error messages of NumPy and Pillow for an incomplete write; these errors have no errno.
_SHORT_WRITE = re.compile(r"\d+ requested and \d+ written|encoder error -2")
_UNUSABLE = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EIO,
    errno.ENXIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENAMETOOLONG,
}  # fmt: skip


def canonical(value: Any) -> str:
    """Returns JSON with sorted keys and no spaces, so that equal values give equal text. Raises
    ValueError for NaN and infinity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any, length: int = 64) -> str:
    """Returns the first `length` hex digits of the SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:length]


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_atomic(path: Path, data: bytes) -> None:
    """Write to a unique temporary file in the same folder, then replace `path`.

    Raises StoreFullError when the disk is full. If writing fails, the temporary file is removed.
    """
    part = path.with_name(f".{path.name[:40]}.{uuid.uuid4().hex[:12]}.part")
    with room(path, len(data)):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write_through(part, data)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
        sync_folder(path.parent)


def readable(value: Any) -> str:
    """Returns JSON with one key per line and each list of numbers on one line. Raises ValueError
    for NaN and infinity; use None instead."""
    text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False)
    # JSON strings contain no line breaks, so the pattern never matches inside a string.
    return _NUMBERS.sub(lambda found: "[" + " ".join(found[1].split()) + "]", text) + "\n"


def write_through(path: Path, data: bytes) -> None:
    """Write a file and flush it to the disk (fsync) before returning."""
    with path.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def sync_folder(folder: Path) -> None:
    """Flush the directory entries of a folder to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Context manager that creates the folder `path`, which must be new or empty, as a whole: it
    yields a temporary folder next to it, which replaces `path` at the end. If an error occurs,
    nothing remains.

    Raises FileExistsError if `path` is not empty or not a folder, and the errors of `room`.
    """
    whole = path.resolve()
    if os.path.lexists(whole) and (not whole.is_dir() or any(whole.iterdir())):
        raise FileExistsError(f"{path} must be empty or new, but it is not empty or not a folder")
    part = whole.with_name(f".{whole.name[:40]}.{uuid.uuid4().hex[:12]}.part")
    made = [folder for folder in whole.parents if not folder.exists()]
    with room(path):
        try:
            part.mkdir(parents=True)
            yield part
            os.replace(part, whole)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            for folder in made:
                with suppress(OSError):
                    folder.rmdir()
            raise
        sync_folder(whole.parent)


def nearest(path: Path) -> Path:
    """Returns `path` if it exists, else its closest existing parent."""
    whole = path.absolute()
    return next(each for each in (whole, *whole.parents) if each.exists())


def no_room(error: OSError) -> bool:
    """Whether an error means that the disk is full, or that a quota or the file size limit is
    reached."""
    if error.errno is None:
        return _SHORT_WRITE.search(str(error)) is not None
    return error.errno in _NO_ROOM


@contextmanager
def room(path: Path, needed: int | None = None, instead: str = "") -> Iterator[None]:
    """Context manager that converts an OSError about `path`. A full disk becomes a StoreFullError
    that states how many bytes are free and, if `needed` is given, how many are needed. An unusable
    path (no permission, disk error) becomes a StoreError. Other errors pass unchanged.

    The text `instead` is appended to the advice to free some space, for example " or set
    `store.root` to another disk".
    """
    try:
        yield
    except OSError as error:
        if not no_room(error) and error.errno not in _UNUSABLE:
            raise
        raise explained(error, path, needed, instead) from error


def explained(
    error: OSError, path: Path, needed: int | None = None, instead: str = ""
) -> StoreError:
    """Returns a StoreError with a one-line message for an OSError about `path`; a StoreFullError if
    the disk is full."""
    if not no_room(error):
        return StoreError(f"cannot use {error.filename or path}: {error.strerror or error}")
    asked = "" if needed is None else f"{needed:,} bytes needed, "
    return StoreFullError(
        f"{path}: not enough disk space: {asked}{_free(nearest(path.parent))}"
        f" ({error.strerror or error}). Free some space{instead}, then repeat the command,"
        " which resumes where it stopped."
    )


def _free(folder: Path) -> str:
    free = f"{shutil.disk_usage(folder).free:,} bytes free"
    found = os.statvfs(folder)
    none_left = found.f_files and not found.f_favail
    return f"{free}, but no inode for another file" if none_left else free
