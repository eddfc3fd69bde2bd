"""Test images held out of a set that has training images alone: a share of every class."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from backdoor_lab.core import checks
from backdoor_lab.core.errors import ConfigError, DataError
from backdoor_lab.core.files import digest

ADVICE = "set dataset.test_share=0.2 to hold out a fifth of every class as test images"


class HeldOut:
    """`share` of every class in (0, 1), drawn with `seed`; None where the set has a test split."""

    def __init__(self, share: Any, seed: Any) -> None:
        self.seed = checks.whole("dataset.split_seed", seed, low=0, below=2**63)
        if share is not None and not 0 < checks.number("dataset.test_share", share) < 1:
            raise ConfigError(
                f"`dataset.test_share` must satisfy 0 < dataset.test_share < 1, got {share!r}"
            )
        self.share = None if share is None else float(share)

    def identity(self) -> dict[str, Any]:
        """What decides the split; empty without a share, so that other data sets keep their id."""
        return {} if self.share is None else {"test_share": [self.share, self.seed]}

    def held_out(self, count: int, name: str) -> NDArray[np.bool_]:
        """Which of the `count` images of class `name` become test images: at least one, and one
        stays. A class is drawn by itself: other classes do not change it."""
        assert self.share is not None
        if count < 2:
            raise DataError(
                f"class {name}: {count} image, and dataset.test_share needs two of every class"
            )
        held = min(max(1, round(self.share * count)), count - 1)
        generator = np.random.default_rng(int(digest([self.seed, name], 16), 16))
        chosen = np.zeros(count, bool)
        chosen[generator.permutation(count)[:held]] = True
        return chosen

    def check(self, has_test: bool, where: object) -> None:
        """Raises DataError for a set without test images and without a share, or with both."""
        if has_test and self.share is not None:
            raise DataError(
                f"{where}: dataset.test_share={self.share:g} is for a set without test images, and"
                " this one has some: leave it out"
            )
        if not has_test and self.share is None:
            raise DataError(f"{where}: no test images are there: {ADVICE}")
