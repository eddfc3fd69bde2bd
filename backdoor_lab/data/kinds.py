"""Detects image files, by their extension or their first bytes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any

from PIL import features

FORMATS: tuple[str, ...] = ("PNG", "JPEG", "BMP", "PPM", "GIF", "WEBP", "TIFF")
"""The formats that are decoded; some of Pillow's other formats start external programs."""

IMAGES: tuple[str, ...] = (
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".jfi", ".jif", ".pjpeg", ".pjp", ".bmp",
    ".ppm", ".pgm", ".pbm", ".pnm", ".gif", ".webp", ".tif", ".tiff",
)  # fmt: skip
"""A file with one of these extensions is treated as an image, whatever it contains."""

if features.check("avif"):  # type: ignore[no-untyped-call]
    FORMATS += ("AVIF",)
    IMAGES += (".avif", ".avifs")

_STARTS = re.compile(
    rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|GIF8[79]a|II\*\0|MM\0\*|RIFF....WEBP"
    rb"|P[1-6]\s+[#0-9]|BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0",
    re.DOTALL,
)
_AVIF = re.compile(rb"....ftypavi[fs]", re.DOTALL)
LISTED = 1000
"""Maximum number of files that a record lists by name."""


def has_image_ending(path: str) -> bool:
    """Whether a file name has the extension of a supported image format."""
    return path.lower().endswith(IMAGES)


def is_image(head: bytes) -> bool:
    """Whether a file that starts with `head` is an image in a supported format."""
    return bool(_STARTS.match(head) or ("AVIF" in FORMATS and _AVIF.match(head)))


def ending(path: str) -> str:
    """Returns a file's extension in lower case, with the dot; "no ending" if there is none."""
    return PurePosixPath(path).suffix.lower() or "no ending"


def summary(paths: Iterable[str]) -> dict[str, Any]:
    """Returns a summary of files for the record: counts by extension and the first `LISTED`
    names."""
    names = sorted(paths)
    return {"by_ending": dict(sorted(Counter(map(ending, names)).items())), "files": names[:LISTED]}


def counted(by_ending: dict[str, int]) -> str:
    """Returns counts by extension as text, ``2 .heic, 1 .csv``, the most frequent first."""
    return ", ".join(
        f"{count} {name}" for name, count in sorted(by_ending.items(), key=lambda each: -each[1])
    )
