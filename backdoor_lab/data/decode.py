"""Image files to pixels, in parallel (Pillow lets other threads run while it decodes).

What becomes of each kind of picture, for `channels` 3 and 1:

    L, 1-bit              grey repeated three times      as it is
    RGB, CMYK, YCbCr      RGB                            luma (ITU-R 601)
    palette               looked up, then as RGB         looked up, then as RGB
    any transparency      laid over black                laid over black
    16-bit, 32-bit, float, LAB, HSV                      refused by name

Only the first frame of an animation counts. Orientation notes (EXIF) are not followed.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from backdoor_lab.errors import DataError

FORMATS = ("PNG", "JPEG", "BMP", "PPM", "GIF", "WEBP", "TIFF")
"""What is decoded at all: Pillow knows formats that start other programs."""

MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
_BATCH, _CHUNK = 2048, 64


def decode(data: bytes, where: str, channels: int, size: int | None) -> NDArray[np.uint8]:
    """One image file as uint8 (channels, H, W), resized to (size, size) unless size is None.

    Resizing is Pillow's bilinear filter, which antialiases. Raises DataError naming `where`.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _refuse_deep(image, where)
            picture = _flat(image, channels)
    except (DataError, MemoryError):
        raise
    except Exception as error:  # decoders of damaged files raise nearly anything
        raise DataError(f"{where}: not a sound image file: {error}") from error
    if size is not None and picture.size != (size, size):
        picture = picture.resize((size, size), Image.Resampling.BILINEAR)
    pixels = np.asarray(picture)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def decode_all(
    contents: Iterable[tuple[str, bytes]],
    rows: dict[str, int],
    where: str,
    channels: int,
    size: int | None,
) -> NDArray[np.uint8]:
    """The image at path p in row ``rows[p]``: uint8 (len(rows), channels, H, W).

    Without a size all images must agree; the first that does not is named in a DataError.
    """
    images: NDArray[np.uint8] | None = None
    first, missing = "", set(rows)
    jobs = ((path, data, f"{where}: {path}") for path, data in contents)
    for path, pixels in _decoded(jobs, channels, size):
        if images is None:
            first, images = path, np.empty((len(rows), *pixels.shape), np.uint8)
        elif pixels.shape != images.shape[1:]:
            raise DataError(_sizes_differ(where, first, images.shape[1:], path, pixels.shape))
        images[rows[path]] = pixels
        missing.discard(path)
    if images is None or missing:
        raise DataError(f"{where}: {len(missing)} images are gone, the first: {min(missing)}")
    return images


def _decoded(
    jobs: Iterator[tuple[str, bytes, str]], channels: int, size: int | None
) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    def work(chunk: list[tuple[str, bytes, str]]) -> list[tuple[str, NDArray[np.uint8]]]:
        return [(path, decode(data, where, channels, size)) for path, data, where in chunk]

    with ThreadPoolExecutor(_processors()) as pool:
        # Batch by batch: never more than one batch of files and pictures waits in memory.
        while batch := list(islice(jobs, _BATCH)):
            chunks = [batch[at : at + _CHUNK] for at in range(0, len(batch), _CHUNK)]
            for done in pool.map(work, chunks):
                yield from done


def _processors() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _refuse_deep(image: Image.Image, where: str) -> None:
    """Refuses more than 8 bits a channel, also where Pillow would quietly drop the lower ones."""
    tiles: Any = getattr(image, "tile", [])
    # BGR;16 is a BMP's way of packing 5, 6 and 5 bits a channel.
    arguments = [tile[3] for tile in tiles]
    shortened = any(";16" in str(args).replace("BGR;16", "") for args in arguments) or (
        image.format == "PPM" and any(_maximum(args) > 255 for args in arguments)
    )
    if image.mode not in MODES or shortened:
        kind = f"{image.mode}, 16 bits a channel" if shortened else f"mode {image.mode}"
        raise DataError(f"{where}: {kind} is not supported; convert to 8-bit grey or RGB")


def _maximum(args: Any) -> int:
    """The largest number among a tile's decoder arguments: a PPM file's brightest value."""
    given = args if isinstance(args, tuple) else (args,)
    return max((value for value in given if isinstance(value, int)), default=0)


def _flat(image: Image.Image, channels: int) -> Image.Image:
    """`image` without transparency, as L for one channel and RGB for three."""
    if image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(opaque, image.convert("RGBA"))
    if channels == 1 and image.mode not in ("1", "L"):
        image = image.convert("RGB")
    return image.convert("L" if channels == 1 else "RGB")


def _sizes_differ(
    where: str, first: str, shape: tuple[int, ...], other: str, other_shape: tuple[int, ...]
) -> str:
    return (
        f"{where}: images must all have one size: {first} has {shape[1]} x {shape[2]}, "
        f"{other} has {other_shape[1]} x {other_shape[2]} (height x width). "
        f"Set `dataset.size`, for example dataset.size={shape[1]}, to resize them all"
    )
