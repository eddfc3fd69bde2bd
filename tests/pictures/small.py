"""Reduces the colors of pictures, to keep their files small."""

from __future__ import annotations

import io

from PIL import Image

LARGEST = 380_000


def small(data: bytes) -> bytes:
    """Convert a picture to a PNG with at most 256 colors. The number of colors is reduced until the
    file is smaller than LARGEST bytes."""
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    for count in (256, 128, 64, 32, 16):
        found = io.BytesIO()
        picture.quantize(count, dither=Image.Dither.NONE).save(found, "PNG", optimize=True)
        if found.tell() < LARGEST:
            break
    return found.getvalue()
