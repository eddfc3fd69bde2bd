"""Handwritten digits that scikit-learn is installed with: real images, nothing to download.

1,797 grey images, 8 x 8 in 17 levels: the test part of UCI's "Optical Recognition of Handwritten
Digits" (Alpaydin and Kaynak 1998), by thirteen writers. Its training part, by thirty others, does
not come with scikit-learn. So this file divides the images itself: of every class a third are test
images, drawn once and for all with seed 0, whatever the seed of a cell. Writers are not named in
the data: both splits hold images of every writer.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from backdoor_lab.core import checks
from backdoor_lab.core.errors import DataError
from backdoor_lab.core.files import digest
from backdoor_lab.data.arrays import resized
from backdoor_lab.data.base import Arrays, Source, Split, divided
from backdoor_lab.data.limits import check_memory
from backdoor_lab.data.splits import HeldOut

COUNT, SIDE, BRIGHTEST = 1797, 8, 16
CLASSES = tuple("0123456789")
CONTENT = "2800c27c8a5c6b34830797d4baffec7921121db049549442d8e2241bd4fefa00"
"""The hash of all images and labels as scikit-learn gives them."""
TEST_SHARE, SPLIT_SEED = 1 / 3, 0
REINSTALL = "Install scikit-learn anew: pip install --force-reinstall --no-deps scikit-learn"


class Digits(Source):
    """Handwritten digits of scikit-learn, grey, 8 x 8 or enlarged to `size` x `size`.

    Levels 0 to 16 become 0 to 255. Enlarging is Pillow's bilinear filter.
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
        self.size = checks.whole("dataset.size", size, low=SIDE, below=4097)

    def identity(self) -> dict[str, Any]:
        """The content's hash, compared when it is read, and the size."""
        return {"content": CONTENT, "size": self.size}

    def known_classes(self) -> tuple[str, ...]:
        """The ten digits."""
        return CLASSES

    def read(self) -> Arrays:
        """Both splits, each in the order of scikit-learn's file."""
        check_memory(
            COUNT * self.size**2, f"data set {self.name}: {COUNT} images", "lower dataset.size"
        )
        levels, labels = _digits()
        pixels = np.rint(levels[:, None] * (255 / BRIGHTEST)).astype(np.uint8)
        whole = Split(resized(pixels, self.size), labels)
        train, test = divided(whole, HeldOut(TEST_SHARE, SPLIT_SEED), CLASSES)
        return Arrays(train, test, CLASSES)


def _digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Levels (N, 8, 8) and labels (N,). Raises DataError unless they are the known ones."""
    try:
        from sklearn.datasets import load_digits  # type: ignore[import-untyped]

        found = load_digits()
        levels, labels = found.images.astype(np.uint8), found.target.astype(np.int64)
    except Exception as error:  # some distributions leave the file out
        raise DataError(f"scikit-learn's digits cannot be read: {error}. {REINSTALL}") from error
    if content_of(levels, labels) != CONTENT:
        raise DataError(f"scikit-learn's digits are not the known 1,797 images. {REINSTALL}")
    return levels, labels


def content_of(levels: NDArray[np.uint8], labels: NDArray[np.int64]) -> str:
    """A hash of images and labels."""
    return digest([list(levels.shape), levels.tobytes().hex(), labels.tolist()])
