"""Paths from the command line or a configuration: made absolute, and checked before use."""

from __future__ import annotations

import errno
import os
import stat
import uuid
from pathlib import Path
from typing import Any

from backdoor_lab.core.atomic_io import nearest, no_room, room
from backdoor_lab.core.errors import ConfigError

LONGEST_NAME, LONGEST = 255, 3800
"""The maximum length in bytes of one name, and of a whole path. The limit for paths leaves room for
the names of files below them."""
IN_CONFIGURATION = {
    "store": ("root",), "dataset": ("root",), "trigger": ("image",),
    "logger": ("save_dir", "tracking_uri"), "defense.data": ("root",),
}  # fmt: skip
"""The configuration keys that hold a path, by configuration group."""
FILES = ("attacked",)
"""The configuration keys outside of groups that hold a path."""
_FILE = "file:"
_SHOWN = 80


def absolute(name: str, given: str, base: Path | None = None) -> Path:
    """Returns the path `given` for option `name` as an absolute path: relative paths are resolved
    against `base` (default: the current folder), and `~` and `~user` are expanded. Symbolic links
    are kept, and the path need not exist.

    Raises ConfigError for an invalid path, and for a path that contains a broken link or a file in
    place of a folder.
    """
    if not given or "\0" in given:
        what = "it contains a NUL character" if given else "it is empty; the current folder is `.`"
        raise _no_path(name, given, what)
    path = (base or Path.cwd()) / _expanded(name, given)
    try:
        encoded = [os.fsencode(part) for part in path.parts]
    except UnicodeEncodeError as error:
        raise _no_path(
            name, given, "it contains characters that no file name can contain"
        ) from error
    if len(os.fsencode(path)) > LONGEST or max(map(len, encoded)) > LONGEST_NAME:
        raise _no_path(
            name,
            given,
            f"it is longer than {LONGEST} bytes, or one of its parts is longer than"
            f" {LONGEST_NAME} bytes",
        )
    _check_way(name, path)
    return path


def usable(name: str, given: str) -> Path:
    """Returns the path for display, with only `~` expanded. Raises the same errors as
    `absolute`."""
    absolute(name, given)
    return _expanded(name, given)


def settle(config: dict[str, Any], base: Path | None = None) -> None:
    """Makes every path in a plain configuration absolute, in place. Raises the same errors as
    `absolute`."""
    for group, keys in IN_CONFIGURATION.items():
        part: Any = config
        for name in group.split("."):
            part = part.get(name) if isinstance(part, dict) else None
        if not isinstance(part, dict):
            continue
        for key in keys:
            given = part.get(key)
            if isinstance(given, str) and given:
                part[key] = _settled(f"{group}.{key}", given, base)
    for key in FILES:
        given = config.get(key)
        if isinstance(given, str) and given:
            config[key] = _settled(key, given, base)


def check_writable(folder: Path) -> None:
    """Raises ConfigError if a folder cannot be created or written to, StoreFullError if the disk is
    full.

    The check creates and removes a test folder, since permission bits are not conclusive.
    """
    existing = nearest(folder)
    probe = existing / f".backdoor_lab-{uuid.uuid4().hex[:12]}"
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        if no_room(error):
            with room(folder):
                raise
        raise ConfigError(
            f"cannot write to {folder}: {existing} is not a writable directory ({error.strerror})"
        ) from error


def _settled(name: str, given: str, base: Path | None) -> str:
    if name != "logger.tracking_uri":
        return str(absolute(name, given, base))
    local = given.startswith(_FILE) and not given.startswith(f"{_FILE}//")
    return f"{_FILE}{absolute(name, given.removeprefix(_FILE), base)}" if local else given


def _expanded(name: str, given: str) -> Path:
    try:
        return Path(given).expanduser()
    except RuntimeError as error:
        user = given.partition("/")[0]
        raise _no_path(name, given, f"no home folder is known for {user}") from error


def _check_way(name: str, path: Path) -> None:
    for each in (*reversed(path.parents), path):
        try:
            found = os.lstat(each)
            if stat.S_ISLNK(found.st_mode):
                found = os.stat(each)
        except OSError as error:
            if error.errno == errno.ENOENT and not each.is_symlink():
                return
            kinds = {errno.ENOENT: " is a broken link", errno.ELOOP: " is a circular link"}
            kind = kinds.get(error.errno or 0, f": {error.strerror}")
            raise _no_path(name, str(path), f"{each}{kind}") from error
        if each != path and not stat.S_ISDIR(found.st_mode):
            raise _no_path(name, str(path), f"{each} is a file, not a folder")


def _no_path(name: str, given: str, why: str) -> ConfigError:
    shown = ascii(given) if not given.isprintable() else repr(given)
    shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"
    return ConfigError(f"`{name}`={shown} is not a usable path: {why}")
