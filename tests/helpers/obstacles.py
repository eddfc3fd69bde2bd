"""Obstacles, such as a folder, that a test puts in the place of a small file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

FILES: dict[str, Callable[[Path], object]] = {
    "directory": lambda path: path.mkdir(),
    "link to itself": lambda path: path.symlink_to(path.name),
    "link to nothing": lambda path: path.symlink_to("nowhere"),
    "named pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
}
"""Functions that create something other than a regular file. Some of the results block a reader, or
never end."""
TEXTS = {
    "deep": b"[" * 100_000 + b"]" * 100_000,
    "deep objects": b'{"a":' * 3000 + b"1" + b"}" * 3000,
    "wrong structure": b'{"asked": null}',
    "a list": b"[1, 2]",
    "null": b"null",
    "truncated": b'{"asked": [',
    "not text": b"\xff\xfe\x00",
    "duplicate key": b'{"a": 1, "a": 1}',
}
"""Contents that make a regular file invalid."""


def obstacle(path: Path, what: str) -> None:
    """Create the obstacle `what`, a key of FILES or TEXTS, at `path`, where nothing exists yet."""
    if what in FILES:
        FILES[what](path)
    else:
        path.write_bytes(TEXTS[what])
