"""Crops two photographs from scikit-learn into a small data set with three classes.

china.jpg and flower.jpg come with scikit-learn under CC BY 2.0: photographs by danielbuechele
(flickr.com/photos/danielbuechele) and vultilion (flickr.com/photos/vultilion).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

#: For each class: the photograph, and the center (x, y) and side length of its crops, in pixels.
CLASSES = {
    "china": ("china.jpg", (208, 205), 350),
    "flower": ("flower.jpg", (306, 222), 340),
    "lake": ("china.jpg", (450, 200), 300),
}
TRAIN, TEST = 40, 10


def write(root: Path, size: int) -> Path:
    """Write crops of `size` x `size` pixels to root/train and root/test. Returns `root`.

    The crops of a class differ by small shifts and zooms, drawn with a fixed seed.
    """
    rng = np.random.default_rng(0)
    for name, (file, middle, side) in CLASSES.items():
        photograph = _photograph(file)
        for number in range(TRAIN + TEST):
            folder = root / ("train" if number < TRAIN else "test") / name
            folder.mkdir(parents=True, exist_ok=True)
            width = side * rng.uniform(0.9, 1)
            left, top = (np.array(middle) + rng.uniform(-8, 8, 2) - width / 2).clip(0)
            box = (left, top, left + width, top + width)
            crop = photograph.resize((size, size), Image.Resampling.LANCZOS, box=box)
            crop.save(folder / f"{number:02d}.png")
    return root


def _photograph(file: str) -> Image.Image:
    from sklearn.datasets import load_sample_image

    return Image.fromarray(load_sample_image(file))
