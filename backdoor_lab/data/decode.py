"""Decodes image files in parallel; Pillow releases the GIL while it decodes.

How each kind of image is converted, for `channels` 3 and 1:

    L, 1-bit              gray repeated three times      unchanged
    RGB, CMYK, YCbCr      RGB                            luma (ITU-R 601)
    palette               looked up, then as RGB         looked up, then as RGB
    any transparency      composited on black            composited on black
    16-bit, 32-bit, float, LAB, HSV                      error that names the mode

Only the first frame of an animation is used. The EXIF orientation is applied. Memory is bounded;
see limits.py.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from backdoor_lab.core.errors import DataError, many
from backdoor_lab.data.kinds import FORMATS
from backdoor_lab.data.limits import LARGE, WAITING, check_pixels
from backdoor_lab.data.members import Content
from backdoor_lab.data.workspace import Workspace

__all__ = ["FORMATS", "MODES", "BrokenImageError", "Decoded", "decode", "decode_all"]
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
Shape = tuple[int, ...]
_BATCH, _CHUNK = 2048, 64
_LARGE_ONE = Lock()


class BrokenImageError(DataError):
    """A damaged image file, or a file that is not an image."""


@dataclass
class Decoded:
    """Decoded images, uint8 (n, channels, H, W). `rows` maps each path to its row; `broken` maps
    each skipped path to the reason. Both are sorted."""

    images: NDArray[np.uint8]
    rows: dict[str, int]
    broken: dict[str, str] = field(default_factory=dict)


def decode(
    data: bytes, where: str, channels: int, size: int | None, *, crop: bool = False
) -> NDArray[np.uint8]:
    """Decodes an image file to uint8 (channels, H, W), resized to (size, size) if size is given.

    With `crop`, the shorter side is resized to `size` and the center is cut out; otherwise the
    sides are resized independently. Resizing uses Pillow's bilinear filter, which antialiases.
    Raises DataError, or its subclass
    BrokenImageError for a damaged file. `where` describes the source of the image in the message.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            check_pixels(image.width, image.height, where)
            _refuse_deep(image, where)
            with _LARGE_ONE if image.width * image.height > LARGE else nullcontext():
                return _pixels(image, channels, size, crop)
    except (DataError, MemoryError):
        raise
    except Exception as error:  # decoders raise almost any exception on damaged files
        raise BrokenImageError(f"{where}: not a valid image file: {error}") from error


def decode_all(
    contents: Iterable[tuple[str, Content]],
    paths: Iterable[str],
    where: str,
    channels: int,
    size: int | None,
    *,
    crop: bool = False,
    skip_broken: bool = False,
    workspace: Workspace | None = None,
) -> Decoded:
    """Decodes the images at `paths`, in that order, into an array of `workspace`. If `size` is
    None, all images must have the same size.

    With `skip_broken`, damaged or unreadable files are skipped; otherwise the first one raises
    DataError.
    """
    rows = {path: row for row, path in enumerate(paths)}
    work = _Work(where, rows, channels, size, crop, workspace or Workspace())
    missing = set(work.rows)
    with ThreadPoolExecutor(_processors()) as pool:
        for batch in _batches(contents):
            missing -= {path for path, _ in batch}
            for broken in pool.map(work.chunk, _split(batch, work)):
                work.refused |= broken
            batch.clear()  # Otherwise these files would be in memory with those of the next batch.
            if work.refused and not skip_broken:
                raise BrokenImageError(work.refused[min(work.refused)] + work.others())
    if missing:
        raise DataError(
            f"{where}: {many(len(missing), 'image')} disappeared during reading; the first by name"
            f" is {min(missing)}"
        )
    return work.done()


@dataclass
class _Work:
    """An array that several threads fill with decoded images; `images` is None until one is
    decoded."""

    where: str
    rows: dict[str, int]
    channels: int
    size: int | None
    crop: bool
    workspace: Workspace
    first: str = ""
    images: NDArray[np.uint8] | None = None
    refused: dict[str, str] = field(default_factory=dict)

    def others(self) -> str:
        """Says how many further files were refused until now."""
        further = len(self.refused) - 1
        return f" ({many(further, 'more such file')} so far)" if further else ""

    def chunk(self, files: list[tuple[str, Content]]) -> dict[str, str]:
        """Decodes each file into its row of `images`. Returns the error message of each broken
        file, by path."""
        broken = {}
        for path, content in files:
            try:
                self._one(path, content)
            except BrokenImageError as error:
                broken[path] = str(error)
        return broken

    def begin(self, path: str, pixels: NDArray[np.uint8]) -> None:
        """Creates the array of all images, using the size of the first image."""
        shape, said = (len(self.rows), *pixels.shape), many(len(self.rows), "image")
        images = self.workspace.empty(shape, f"{self.where}: {said}", "set `dataset.size`")
        self.first, self.images = path, images

    def done(self) -> Decoded:
        """Returns the decoded images, without rows for broken files."""
        if self.images is None:
            reason = self.refused[min(self.refused)] if self.refused else "no image"
            raise DataError(
                f"{self.where}: none of the {many(len(self.rows), 'image')} can be read: {reason}"
            )
        sound = [path for path in self.rows if path not in self.refused]
        rows = {path: row for row, path in enumerate(sound)}
        for path, row in rows.items() if self.refused else ():
            self.images[row] = self.images[self.rows[path]]  # row <= its old place
        return Decoded(self.images[: len(rows)], rows, dict(sorted(self.refused.items())))

    def _one(self, path: str, content: Content) -> None:
        if isinstance(content, DataError):
            raise BrokenImageError(str(content)) from content
        said = f"{self.where}: {path}"
        pixels = decode(content, said, self.channels, self.size, crop=self.crop)
        if self.images is None:
            self.begin(path, pixels)
        assert self.images is not None
        if pixels.shape != self.images.shape[1:]:
            shape = self.images.shape[1:]
            raise DataError(_sizes_differ(self.where, self.first, shape, path, pixels.shape))
        self.images[self.rows[path]] = pixels


def _split(batch: list[tuple[str, Content]], work: _Work) -> Iterator[list[tuple[str, Content]]]:
    """Splits a batch into chunks for other threads. Until the image shape is known, decodes images
    in this thread, one by one, instead of yielding them."""
    at = 0
    while work.images is None and at < len(batch):
        work.refused |= work.chunk(batch[at : at + 1])
        at += 1
    size = max(1, min(_CHUNK, (len(batch) - at) // _processors()))
    for start in range(at, len(batch), size):
        yield batch[start : start + size]


def _batches(
    contents: Iterable[tuple[str, Content]],
) -> Iterator[list[tuple[str, Content]]]:
    """Yields groups of files, bounded in number and bytes, so that only one group is in memory at a
    time."""
    batch: list[tuple[str, Content]] = []
    held = 0
    for path, content in contents:
        batch.append((path, content))
        held += len(content) if isinstance(content, bytes) else 0
        if len(batch) == _BATCH or held > WAITING:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def _processors() -> int:
    """Returns the number of processors available to this process."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _pixels(image: Image.Image, channels: int, size: int | None, crop: bool) -> NDArray[np.uint8]:
    picture = _flat(_upright(image), channels)
    if size is not None and crop:
        from torchvision.transforms.functional import center_crop, resize

        picture = center_crop(resize(picture, [size]), [size, size])
    elif size is not None and picture.size != (size, size):
        picture = picture.resize((size, size), Image.Resampling.BILINEAR)
    pixels = np.asarray(picture)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _upright(image: Image.Image) -> Image.Image:
    """Returns `image` rotated by its EXIF orientation; unchanged if the orientation cannot be
    read."""
    image.load()  # Raises for damaged pixels here, outside of the handler for damaged EXIF data.
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # malformed EXIF data raise almost any exception
        return image


def _refuse_deep(image: Image.Image, where: str) -> None:
    """Raises DataError for images with more than 8 bits per channel, even if Pillow would convert
    them."""
    tiles: Any = getattr(image, "tile", [])
    # BGR;16 is BMP's format with 5, 6 and 5 bits per channel.
    arguments = [tile[3] for tile in tiles]
    shortened = any(";16" in str(args).replace("BGR;16", "") for args in arguments) or (
        image.format == "PPM" and any(_maximum(args) > 255 for args in arguments)
    )
    if image.mode not in MODES or shortened:
        kind = f"mode {image.mode} with 16 bits per channel" if shortened else f"mode {image.mode}"
        raise DataError(f"{where}: {kind} is not supported; convert to 8-bit gray or RGB")


def _maximum(args: Any) -> int:
    """Returns the largest integer in the decoder arguments of one of Pillow's tiles; for PPM, this
    is the maximum pixel value."""
    given = args if isinstance(args, tuple) else (args,)
    return max((value for value in given if isinstance(value, int)), default=0)


def _flat(image: Image.Image, channels: int) -> Image.Image:
    """Returns `image` without transparency, in mode L for one channel and RGB for three."""
    if image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(opaque, image.convert("RGBA"))
    if channels == 1 and image.mode not in ("1", "L"):
        image = image.convert("RGB")
    return image.convert("L" if channels == 1 else "RGB")


def _sizes_differ(where: str, first: str, shape: Shape, other: str, other_shape: Shape) -> str:
    return (
        f"{where}: all images must have the same size: {first} has {shape[1]} x {shape[2]}, "
        f"{other} has {other_shape[1]} x {other_shape[2]} (height x width). "
        f"Set `dataset.size`, for example dataset.size={shape[1]}, to resize them all"
        ", or `dataset.resize` to resize the shorter side and cut out the center"
    )
