"""Reads the image files that attacks use, and validates fractions in 0..1."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from backdoor_lab.core import validation
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.lazy import Tensor, torch
from backdoor_lab.data.decode import FORMATS, MODES


class Picture:
    """The image file at `path`, read once, with its transparency.

    `content` is the SHA-256 of the file's bytes, in hex. `key` is the configuration key that holds
    the path, for error messages. Raises ConfigError if the file does not exist or is not an 8-bit
    image in a format accepted for data sets. Only the first frame of an animation is used; EXIF
    orientation is ignored.
    """

    def __init__(self, key: str, path: object) -> None:
        data = file_bytes(key, path)
        self.content = hashlib.sha256(data).hexdigest()
        self._pixels = _decoded(key, path, data)

    def sized(self, channels: int, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Resizes the image and returns two tensors: the color, float32 (channels, height, width)
        in 0..255, and the opacity, (height, width) in 0..1.

        Uses Pillow's bilinear filter, which antialiases. With one channel, the color is the luma
        (ITU-R 601).
        """
        picture = Image.fromarray(self._pixels).resize((width, height), Image.Resampling.BILINEAR)
        color = torch.from_numpy(np.array(picture.convert("L" if channels == 1 else "RGB")))
        opacity = torch.from_numpy(np.array(picture.getchannel("A")))
        return color.view(height, width, channels).permute(2, 0, 1).float(), opacity.float() / 255


def picture(key: str, path: object) -> Picture | None:
    """Returns the picture at `path`, or None if `path` is None."""
    return None if path is None else Picture(key, path)


def pictures(key: str, path: object, most: int) -> list[Picture]:
    """Returns the picture in the file `path`, or up to `most` pictures in the folder `path`: the
    first by name, without hidden files. Returns an empty list if `path` is None."""
    folder = Path(path).expanduser() if isinstance(path, str) and path else None
    if folder is None or not folder.is_dir():
        return [] if path is None else [Picture(key, path)]
    files = sorted(each for each in folder.iterdir() if each.is_file() and each.name[0] != ".")
    if not files:
        raise ConfigError(
            f"`{key}`: the folder {path} has no image files; put some into it, or give an image"
            " file or null"
        )
    return [Picture(key, str(each)) for each in files[:most]]


def content_of(pictures: list[Picture]) -> str:
    """Returns a hash of the files of `pictures`: the hash of the file if there is only one, an
    empty string if there is none."""
    if len(pictures) < 2:
        return pictures[0].content if pictures else ""
    return hashlib.sha256("".join(each.content for each in pictures).encode()).hexdigest()


def share(name: str, value: Any) -> float:
    """Returns `value` as a float with ``0 < value <= 1``. Raises ConfigError for other values."""
    if not 0 < validation.number(name, value) <= 1:
        raise ConfigError(f"`{name}` must satisfy 0 < {name} <= 1, got {value!r}")
    return float(value)


def file_bytes(key: str, path: object) -> bytes:
    """Returns the content of the file at `path`. Raises ConfigError if it cannot be read."""
    if not isinstance(path, str) or not path:
        raise ConfigError(f"`{key}` must be the path of an image file or null, got {path!r}")
    try:
        return Path(path).expanduser().read_bytes()
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"`{key}`: cannot read {path}: {reason}. Give the path of an image file or null"
        ) from error


def not_an_image(key: str, path: object, reason: object) -> ConfigError:
    """The error for a file that cannot be decoded as an image."""
    return ConfigError(
        f"`{key}`: {path} is not a valid image file: {reason}. Give null or a file in one of"
        f" these formats: {', '.join(FORMATS)}"
    )


def _decoded(key: str, path: object, data: bytes) -> NDArray[np.uint8]:
    """Decodes an image file to RGBA pixels, uint8 (H, W, 4)."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            mode = image.mode
            pixels = np.array(image.convert("RGBA")) if mode in MODES else None
    except Exception as error:  # decoders raise almost any exception on damaged files
        raise not_an_image(key, path, error) from error
    if pixels is None:
        raise ConfigError(
            f"`{key}`: {path} has mode {mode}, which is not supported; convert it to 8-bit gray,"
            " RGB or RGBA"
        )
    return pixels
