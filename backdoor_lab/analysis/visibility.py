"""Tests whether the poisoned images that a defense misses are those that the attack changed
least."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backdoor_lab.numerics.ranking import auroc

Array = NDArray[Any]
HEADS = {
    "poisoned": "#Pois", "left": "#Pois Left", "change_left": "Change left",
    "largest_left": "Largest left", "smallest_found": "Smallest found",
    "change_found": "Change found", "auroc": "AUROC change",
}  # fmt: skip
NOTES = (
    "Change: the Euclidean norm of the difference between a training image with and without the"
    " trigger, in gray levels of 0 to 255. Left: poisoned images that the defense kept. Found:"
    " poisoned images that it removed. The changes are medians unless stated otherwise.",
    "AUROC change: probability that an image left was changed less than an image found, with ties"
    " counted as half. If it is 1, the images left are exactly those changed least.",
)


@dataclass(frozen=True)
class Visibility:
    """The changes that the attack made to a cell's poisoned images, as l2 norms in gray levels.

    All values refer to poisoned images: "left" to those that the defense kept, and "found" to those
    that the defense removed.

    - `poisoned`: number of poisoned images. `left`: number of poisoned images that were kept.
    - `change_left`: median change of kept images. `change_found`: median change of removed images.
    - `largest_left`: largest change of a kept image.
    - `smallest_found`: smallest change of a removed image.
    - `auroc`: probability that a kept image was changed less than a removed one.

    An undefined value is NaN.
    """

    poisoned: int
    left: int
    change_left: float
    largest_left: float
    smallest_found: float
    change_found: float
    auroc: float


def visibility(before: Array, after: Array, kept: Array) -> Visibility:
    """Compares how much an attack changed two groups of poisoned images: those that a defense kept
    and those that it removed.

    `kept` bool (n,) is true for kept images. `before` and `after` are the images without and with
    the trigger, both uint8 (n, C, H, W).
    """
    moved = after.astype(np.float64) - before.astype(np.float64)
    change = np.sqrt(np.square(moved).sum(axis=(1, 2, 3)))
    return Visibility(
        poisoned=len(change),
        left=int(kept.sum()),
        change_left=_or_nan(np.median, change[kept]),
        largest_left=_or_nan(np.max, change[kept]),
        smallest_found=_or_nan(np.min, change[~kept]),
        change_found=_or_nan(np.median, change[~kept]),
        auroc=auroc(-change, kept),
    )


def _or_nan(figure: Any, values: Array) -> float:
    return float(figure(values)) if len(values) else float("nan")


def text(name: str, value: float) -> str:
    """Returns the value of statistic `name` as text for tables."""
    if not np.isfinite(value):
        return "–"
    return f"{value:.3f}" if name == "auroc" else f"{value:.0f}"
