"""Turns the images in any folder or archive into square images of one size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from backdoor_lab.core.errors import DataError
from backdoor_lab.data.archives import members
from backdoor_lab.data.decode import decode
from backdoor_lab.data.kinds import has_image_ending


def middle_squares(root: Path, count: int, size: int) -> NDArray[np.uint8]:
    """Returns center crops of the first `count` images: uint8 (n, size, size, 3), n > 0.

    `root` is a folder or an archive. All files in `root` with the extension of an image format
    count as images, at any depth, sorted by path. Raises DataError if there is no image or if one
    is damaged.
    """
    inside = members(root)
    paths = [path for path in sorted(inside.listing().files) if has_image_ending(path)][:count]
    if not paths:
        raise DataError(f"{root}: the folder or archive contains no image file")
    found = {}
    for path, content in inside.contents(set(paths)):
        if isinstance(content, DataError):
            raise content
        found[path] = _square(decode(content, f"{root}: {path}", 3, None), size)
    return np.stack([found[path] for path in paths])


def _square(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Returns the center square of `image` (3, H, W), resized: (size, size, 3)."""
    _, height, width = image.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    middle = image[:, top : top + side, left : left + side].transpose(1, 2, 0)
    picture = Image.fromarray(np.ascontiguousarray(middle))
    return np.asarray(picture.resize((size, size), Image.Resampling.LANCZOS))
