"""Writing files so that a reader sees the whole new file or the old one, never a part (R1)."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from backdoor_lab.errors import StoreFull

_NUMBERS = re.compile(r"\[\n([-+.,\w\s]*?)\n\s*\]")
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text. NaN is refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any, length: int = 64) -> str:
    """The first `length` hex digits of the sha256 of a JSON value's canonical text."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:length]


def sha256_of(path: Path) -> str:
    """The sha256 of a file's bytes, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_atomic(path: Path, data: bytes) -> None:
    """Writes under a unique temporary name in the same folder, then replaces `path`.

    Raises StoreFull when there is no room; the temporary file is gone then.
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
    """JSON with one key a line, and a list of numbers in one line: a curve of a thousand points
    is one line. NaN and infinity are refused, use null."""
    text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False)
    # Text in JSON holds no line breaks, so what stands between them is never part of a string.
    return _NUMBERS.sub(lambda found: "[" + " ".join(found[1].split()) + "]", text) + "\n"


def write_json(path: Path, value: Any) -> None:
    """`value` as readable JSON, atomically."""
    write_atomic(path, readable(value).encode())


def write_through(path: Path, data: bytes) -> None:
    """Plain write that has reached the disk when it returns."""
    with path.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def nearest(path: Path) -> Path:
    """The path if it exists, else the nearest one above it that does."""
    whole = path.absolute()
    return next(each for each in (whole, *whole.parents) if each.exists())


@contextmanager
def room(path: Path, needed: int | None = None) -> Iterator[None]:
    """Turns 'no space left' into StoreFull with what was needed, what is free, and where."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        free = shutil.disk_usage(nearest(path.parent)).free
        asked = "more room" if needed is None else f"{needed:,} bytes"
        raise StoreFull(
            f"{path}: no room: {asked} needed, {free:,} bytes free ({error.strerror}). Make room"
            " or set `store.root` to another disk, then repeat the command: it goes on from here."
        ) from error
