"""Writes tiny files under the official names of published data sets, with matching hashes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from backdoor_lab.data.official import Official

RNG = np.random.default_rng(0)

PIXELS = RNG.integers(0, 256, (20, 3, 32, 32), np.uint8)


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def put(root: Path, files: dict[str, bytes]) -> tuple[Official, ...]:
    """Write `files` below `root`. Returns them as official files with their hashes."""
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return tuple(Official(name, md5(data), ()) for name, data in files.items())


def idx_bytes(values: np.ndarray) -> bytes:
    shape = np.array(values.shape, ">u4").tobytes()
    return b"\0\0\x08" + bytes([values.ndim]) + shape + values.tobytes()
