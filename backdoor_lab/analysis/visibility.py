"""Whether the poison that a defense left is the poison whose trigger cannot be seen."""

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
    "Change: how far the attack moved a training image, the Euclidean norm of the difference over"
    " all its values, in grey levels of 0 to 255: of the poisoned images that the defense left the"
    " median and the largest, of those that it found the smallest and the median.",
    "AUROC change: chance that an image that was left was changed less than one that was found,"
    " ties half. 1: what is left is just what was changed least.",
)


@dataclass(frozen=True)
class Visibility:
    """Of a cell's poison: `poisoned` images and how many a defense `left`; the change (grey levels)
    of the median image left and found, the largest change left and the smallest found, and `auroc`,
    the chance that one left was changed less than one found. NaN where there is none."""

    poisoned: int
    left: int
    change_left: float
    largest_left: float
    smallest_found: float
    change_found: float
    auroc: float


def visibility(before: Array, after: Array, kept: Array) -> Visibility:
    """Of the poisoned images `before` and `after` the attack, both uint8 (n, C, H, W), and which of
    them a defense `kept`, bool (n,)."""
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
    """A figure as a table shows it."""
    if not np.isfinite(value):
        return "–"
    return f"{value:.3f}" if name == "auroc" else f"{value:.0f}"
