"""Reads small files (manifests, lock files, records, lists of cells) with a size limit, and sets
damaged ones aside.

Distinguishes a missing file from a directory, a circular link, a broken link, a FIFO, a device, an
oversized file and deeply nested JSON. None of these blocks the reader or overflows its stack.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import stat
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from backdoor_lab.core.atomic_io import readable, room, write_atomic
from backdoor_lab.core.errors import DataError, StoreError

log = logging.getLogger(__name__)
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
MAX_BYTES = 64 * 2**20
MAX_DEPTH = 64
AGAIN = "set aside as {} and computed again"


class UnreadableFileError(DataError):
    """A file that cannot be read now but may be intact: no permission, or a disk error."""


class DamagedFileError(UnreadableFileError):
    """A path that does not hold a valid file of the expected kind."""


def problem(path: Path | str) -> str | None:
    """Returns a description, such as "a broken link", of a path that is not a regular file; None
    for a regular file or a missing one.

    Links are followed: a link to a regular file counts as a regular file.
    """
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "a broken link" if os.path.lexists(path) else None
    except OSError:
        return "a circular link" if os.path.islink(path) else None
    return None if stat.S_ISREG(mode) else f"{_kind(mode)}, not a regular file"


def check_regular(path: Path | str) -> None:
    """Raises DamagedFileError if `path` exists but is not a regular file: reading it could
    block."""
    why = problem(path)
    if why is not None:
        raise DamagedFileError(f"{path} is {why}")


def read_small(path: Path | str, *, max_bytes: int = MAX_BYTES) -> bytes:
    """Returns the bytes of a regular file.

    Raises FileNotFoundError if it does not exist, DamagedFileError if it is not a regular file or
    exceeds `max_bytes`, UnreadableFileError if the system cannot read it.
    """
    check_regular(path)
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(handle, "rb") as stream:
            size = os.fstat(handle).st_size
            large = size > max_bytes
            # If the file grows in the meantime, the added part is ignored.
            data = b"" if large else stream.read(size)
    except NotADirectoryError as error:
        raise FileNotFoundError(*error.args) from error
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno == errno.ELOOP:
            # A parent folder is a circular link: `problem` has already rejected one at `path`
            # itself.
            raise FileNotFoundError(*error.args) from error
        raise UnreadableFileError(f"{path} cannot be read ({error.strerror})") from error
    if large:
        raise DamagedFileError(f"{path} is larger than {max_bytes:,} bytes")
    return data


def decode(data: bytes, *, max_depth: int = MAX_DEPTH, sealed: bool = False) -> Any:
    """Parse JSON. A lone surrogate, which JSON allows but UTF-8 cannot encode, becomes an escape
    sequence (``\\ud800``) in keys and values.

    Raises DamagedFileError for invalid JSON, duplicate keys, and nesting deeper than `max_depth`.
    With `sealed`, which is for text written by this package, duplicate keys are not detected.
    """
    try:
        value = _fast_json()(data) if sealed else json.loads(data, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        said = str(error)[:120] if isinstance(error, ValueError) else "nested too deeply"
        raise DamagedFileError(f"not valid JSON ({said})") from error
    # Most files have fewer brackets than the allowed depth and need no check.
    if data.count(b"[") + data.count(b"{") > max_depth and _deeper(value, max_depth):
        raise DamagedFileError(f"not valid JSON (nested deeper than {max_depth})")
    # Performance: finding a single byte is several times faster than the regular expression.
    return _encodable(value) if b"\\" in data and _SURROGATE.search(data) else value


@cache
def _fast_json() -> Callable[[bytes], Any]:
    """Returns the JSON decoder for text that this package wrote: orjson if it is installed (three
    times as fast), otherwise json.

    Text that orjson refuses (NaN, an unpaired surrogate, damage) is passed to json, which parses it
    or raises its own error. Integers beyond 64 bits, which this package does not write, become
    floats in orjson.
    """
    try:
        from orjson import loads
    except ImportError:
        return json.loads

    def decoded(data: bytes) -> Any:
        try:
            return loads(data)
        except ValueError:
            return json.loads(data)

    return decoded


def _encodable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", errors="backslashreplace").decode()
    if isinstance(value, dict):
        return {_encodable(key): _encodable(item) for key, item in value.items()}
    return [_encodable(item) for item in value] if isinstance(value, list) else value


def read_json(path: Path | str, *, max_bytes: int = MAX_BYTES) -> Any:
    """Read a JSON file. Raises the errors of `read_small` and `decode`, with the path in the
    message."""
    data = read_small(path, max_bytes=max_bytes)
    try:
        return decode(data)
    except DamagedFileError as error:
        raise DamagedFileError(f"{path} is {error}") from error


def set_aside(path: Path, why: str, inode: int | None = None) -> None:
    """Rename `path` to ``.bad-…`` in the same folder and log one warning.

    If `inode` is given, does so only if `path` still has this inode: another process may already
    have replaced the damaged file. Raises StoreError if `path` cannot be renamed.
    """
    aside = path.with_name(f".bad-{path.name[:80]}-{uuid.uuid4().hex[:8]}")
    try:
        if inode is not None and os.lstat(path).st_ino != inode:
            return
        os.rename(path, aside)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StoreError(
            f"{path}: {why}, and it cannot be set aside ({error.strerror}): remove it, then repeat"
            " the command"
        ) from error
    log.warning("%s: %s; %s", path, why, AGAIN.format(aside.name))


def read_or_set_aside(
    path: Path, check: Callable[[Any], None] = lambda value: None, *, max_bytes: int = MAX_BYTES
) -> Any:
    """Read a JSON file; return None if it is missing or damaged, and set a damaged file aside.
    `check` must raise DataError for a value of the wrong form; such a file counts as damaged."""
    try:
        value = read_json(path, max_bytes=max_bytes)
        check(value)
    except FileNotFoundError:
        return None
    except DataError as error:
        if isinstance(error, UnreadableFileError) and not isinstance(error, DamagedFileError):
            raise
        set_aside(path, _without(path, error))
        return None
    return value


def make_folder(path: Path) -> None:
    """Create a folder and its parents; a file at that path is set aside."""
    clear_folder(path)
    with room(path):
        path.mkdir(parents=True, exist_ok=True)


def clear_link(path: Path) -> None:
    """Set aside a broken or circular link at `path`."""
    if path.is_symlink() and not path.exists():
        set_aside(path, problem(path) or "a circular link")


def clear_file(path: Path) -> None:
    """Set aside whatever is at `path` if it is not a regular file, so that a file can be written
    there."""
    why = problem(path)
    if why is not None:
        set_aside(path, why)


def clear_folder(path: Path) -> None:
    """Set aside whatever is at `path` if it is not a folder, so that a folder can be created
    there."""
    if os.path.lexists(path) and not path.is_dir():
        set_aside(path, "not a folder")


def write_ours(path: Path, data: bytes) -> None:
    """Write a file atomically, unless it already has this content; a directory at that path is set
    aside."""
    try:
        if read_small(path, max_bytes=len(data)) == data:
            return
    except (OSError, DataError):
        pass
    if path.is_dir():
        set_aside(path, "a directory, not a regular file")
    write_atomic(path, data)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as readable JSON."""
    write_ours(path, readable(value).encode())


def _without(path: Path, error: DataError) -> str:
    return str(error).removeprefix(f"{path} is ")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        _refuse_twice([key for key, _ in pairs])
    return found


def _refuse_twice(keys: list[str]) -> NoReturn:
    (twice, _), *_ = Counter(keys).most_common(1)
    raise ValueError(f"duplicate key {twice[:40]!r}")


def _deeper(value: Any, max_depth: int) -> bool:
    """Whether lists and objects are nested deeper than `max_depth`. Uses a loop, since recursion
    could overflow the stack."""
    level = [value]
    for _ in range(max_depth):
        level = [each for each in level if isinstance(each, (dict, list))]
        level = [item for each in level for item in _items(each)]
    return any(isinstance(each, (dict, list)) for each in level)


def _items(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def _kind(mode: int) -> str:
    kinds = (
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISFIFO, "a named pipe"),
        (stat.S_ISSOCK, "a socket"),
    )
    return next((name for test, name in kinds if test(mode)), "a device")
