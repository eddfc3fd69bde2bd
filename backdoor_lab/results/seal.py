"""JSON objects whose last key, the seal, is the hash of the text before it.

    {"id": "…", "nat1": 0.91, "seal": "<sha256 of everything before the comma>"}

The hash covers the text, not the values: any edit, repeated key or flipped bit is detected, and
checking ten thousand records takes no noticeable time. CRLF line endings are accepted.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from backdoor_lab.core.atomic_io import readable
from backdoor_lab.core.errors import DataError
from backdoor_lab.core.small_files import read_small, write_ours

_SEAL = re.compile(rb',[ \r\n]*"seal": "([0-9a-f]{64})"[ \r\n]*\}[ \r\n]*\Z')

_NEAR = 120


def sealed(text: str) -> str:
    """Appends the seal to the text of a JSON object. The result is laid out like `text`: on one
    line, or with one line per key."""
    body = text.rstrip().removesuffix("}").rstrip()
    gap, end = ("\n ", "\n}\n") if "\n" in body else (" ", "}\n")
    return f'{body},{gap}"seal": "{_hash(body.encode())}"{end}'


def write_sealed(path: Path, value: dict[str, Any]) -> dict[str, Any]:
    """Writes `value` atomically as readable JSON with its seal; returns the content written."""
    text = sealed(readable(value))
    write_ours(path, text.encode())
    found: dict[str, Any] = json.loads(text)
    return found


def read_sealed(path: Path) -> bytes:
    """Returns the bytes of a sealed file. Raises the errors of `read_small` and `check_seal`."""
    data = read_small(path)
    check_seal(data)
    return data


def check_seal(data: bytes) -> None:
    """Raises DataError unless `data` has a seal that matches its content."""
    # This package writes the seal at the end of a file; only an editor may have moved it.
    found = _SEAL.search(data, max(0, len(data) - _NEAR)) or _SEAL.search(data)
    if found is None:
        raise DataError("there is no seal: the text was edited, or written before seals existed")
    if _hash(data[: found.start()]) != found[1].decode():
        raise DataError(
            "the seal does not match: the text was edited or damaged after it was sealed"
        )


def _hash(body: bytes) -> str:
    return hashlib.sha256(unix_lines(body)).hexdigest()


def unix_lines(data: bytes) -> bytes:
    """Returns `data` with CRLF line endings replaced by LF."""
    # Performance: most data has no CR, and finding a single byte is ten times faster.
    return data.replace(b"\r\n", b"\n") if b"\r" in data else data
