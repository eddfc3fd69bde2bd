"""Handwritten digits that come with scikit-learn: real images without a download.

1,797 gray images of 8 x 8 pixels in 17 levels: the test part of UCI's "Optical Recognition of
Handwritten Digits" (Alpaydin and Kaynak 1998), by 13 writers. scikit-learn does not include the
training part, by 30 other writers. This module therefore splits the images: a third of every class
are test images, drawn once with seed 0, independent of a cell's seed. The data do not identify
the writers, so images of one writer may be in both splits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from backdoor_lab.core import validation
from backdoor_lab.core.atomic_io import digest
from backdoor_lab.core.errors import DataError
from backdoor_lab.data.arrays import resized
from backdoor_lab.data.base import Arrays, Source, Split, divided
from backdoor_lab.data.limits import check_memory
from backdoor_lab.data.splits import HeldOut

COUNT, SIDE, BRIGHTEST = 1797, 8, 16
CLASSES = tuple("0123456789")
CONTENT = "2800c27c8a5c6b34830797d4baffec7921121db049549442d8e2241bd4fefa00"
"""Hash of all images and labels in scikit-learn's file."""
TEST_SHARE, SPLIT_SEED = 1 / 3, 0
REINSTALL = "Reinstall scikit-learn: pip install --force-reinstall --no-deps scikit-learn"


class Digits(Source):
    """scikit-learn's handwritten digits, gray, 8 x 8 or enlarged to `size` x `size`.

    Levels 0 to 16 are scaled to 0..255. Enlarging uses Pillow's bilinear filter.
    """

    def __init__(
        self,
        *,
        name: str = "digits",
        size: int = SIDE,
        limit_train: int | None = None,
        limit_test: int | None = None,
    ) -> None:
        super().__init__(name=name, limit_train=limit_train, limit_test=limit_test)
        self.size = validation.whole("dataset.size", size, low=SIDE, below=4097)

    def identity(self) -> dict[str, Any]:
        """Returns `size` and the hash of the images and labels; `read` verifies this hash."""
        return {"content": CONTENT, "size": self.size}

    def known_classes(self) -> tuple[str, ...]:
        """The names of the ten digits."""
        return CLASSES

    def read(self) -> Arrays:
        """Returns both splits, each in the order of scikit-learn's file."""
        check_memory(
            COUNT * self.size**2, f"data set {self.name}: {COUNT} images", "lower dataset.size"
        )
        levels, labels = _digits()
        pixels = np.rint(levels[:, None] * (255 / BRIGHTEST)).astype(np.uint8)
        whole = Split(resized(pixels, self.size), labels)
        train, test = divided(whole, HeldOut(TEST_SHARE, SPLIT_SEED), CLASSES, self.workspace)
        return Arrays(train, test, CLASSES)


def _digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Returns images (N, 8, 8) and labels (N,). Raises DataError unless the hash of both equals the
    constant `CONTENT`."""
    try:
        from sklearn.datasets import load_digits  # type: ignore[import-untyped]

        found = load_digits()
        levels, labels = found.images.astype(np.uint8), found.target.astype(np.int64)
    except Exception as error:  # some distributions omit the file
        raise DataError(f"cannot read scikit-learn's digits: {error}. {REINSTALL}") from error
    if content_of(levels, labels) != CONTENT:
        raise DataError(f"scikit-learn's digits are not the known 1,797 images. {REINSTALL}")
    return levels, labels


def content_of(levels: NDArray[np.uint8], labels: NDArray[np.int64]) -> str:
    """Returns a hash of images and labels."""
    return digest([list(levels.shape), levels.tobytes().hex(), labels.tolist()])
