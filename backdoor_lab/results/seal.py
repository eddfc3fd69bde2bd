"""A JSON object that carries the hash of its own text, as its last key.

    {"id": "…", "nat1": 0.91, "seal": "<sha256 of everything before the comma>"}

The text is hashed and not the values: any edit, a repeated key and a flipped bit are noticed, and
checking ten thousand records costs nothing. Line ends may be those of any system.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from backdoor_lab.core.errors import DataError
from backdoor_lab.core.files import readable
from backdoor_lab.core.small_files import read_small, write_ours

_SEAL = re.compile(rb',[ \r\n]*"seal": "([0-9a-f]{64})"[ \r\n]*\}[ \r\n]*\Z')

_NEAR = 120


def sealed(text: str) -> str:
    """The text of a JSON object with its seal added, in the layout of the text: one line, or one
    line for each key."""
    body = text.rstrip().removesuffix("}").rstrip()
    gap, end = ("\n ", "\n}\n") if "\n" in body else (" ", "}\n")
    return f'{body},{gap}"seal": "{_hash(body.encode())}"{end}'


def write_sealed(path: Path, value: dict[str, Any]) -> dict[str, Any]:
    """`value` as readable JSON with its seal, atomically; what the file then holds."""
    text = sealed(readable(value))
    write_ours(path, text.encode())
    found: dict[str, Any] = json.loads(text)
    return found


def read_sealed(path: Path) -> bytes:
    """The bytes of a sealed file. Raises as `read_small` and `check_seal` do."""
    data = read_small(path)
    check_seal(data)
    return data


def check_seal(data: bytes) -> None:
    """Raises DataError unless `data` carries a seal and is what was sealed."""
    # Near the end where we wrote it; only an editor's line ends may have moved it.
    found = _SEAL.search(data, max(0, len(data) - _NEAR)) or _SEAL.search(data)
    if found is None:
        raise DataError("it carries no seal: it was edited, or is older than seals")
    if _hash(data[: found.start()]) != found[1].decode():
        raise DataError("its seal does not hold: it was edited or damaged after it was written")


def _hash(body: bytes) -> str:
    return hashlib.sha256(body.replace(b"\r\n", b"\n")).hexdigest()
