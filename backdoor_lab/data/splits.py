"""Holds out test images from a data set that has only training images."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from backdoor_lab.core import validation
from backdoor_lab.core.atomic_io import digest
from backdoor_lab.core.errors import ConfigError, DataError

ADVICE = "set dataset.test_share=0.2 to hold out a fifth of every class as test images"


class HeldOut:
    """Holds out a fraction `share` in (0, 1) of every class, drawn with `seed`; no images if
    `share` is None."""

    def __init__(self, share: Any, seed: Any) -> None:
        self.seed = validation.whole("dataset.split_seed", seed, low=0, below=2**63)
        if share is not None and not 0 < validation.number("dataset.test_share", share) < 1:
            raise ConfigError(
                f"`dataset.test_share` must satisfy 0 < dataset.test_share < 1, got {share!r}"
            )
        self.share = None if share is None else float(share)

    def identity(self) -> dict[str, Any]:
        """Returns `share` and `seed`, which determine the split; empty if no images are held
        out."""
        return {} if self.share is None else {"test_share": [self.share, self.seed]}

    def held_out(self, count: int, name: str) -> NDArray[np.bool_]:
        """Returns a mask over the images of class `name`, true for those that become test images.

        `count` is the number of images of the class. At least one of them becomes a test image, but
        not all. The mask does not depend on other classes. Raises DataError for fewer than two
        images.
        """
        assert self.share is not None
        if count < 2:
            raise DataError(
                f"class {name}: dataset.test_share needs at least two images per class, got {count}"
            )
        held = min(max(1, round(self.share * count)), count - 1)
        generator = np.random.default_rng(int(digest([self.seed, name], 16), 16))
        chosen = np.zeros(count, bool)
        chosen[generator.permutation(count)[:held]] = True
        return chosen

    def check(self, has_test: bool, where: object) -> None:
        """Raises DataError unless exactly one of these is true: the data set has test images;
        `share` is set."""
        if has_test and self.share is not None:
            raise DataError(
                f"{where}: dataset.test_share={self.share:g} is for data sets without test images,"
                " but this one has test images: remove dataset.test_share"
            )
        if not has_test and self.share is None:
            raise DataError(f"{where}: there are no test images: {ADVICE}")
