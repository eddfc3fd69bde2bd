"""Computes the curves and histograms of a cell from NumPy arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backdoor_lab.analysis.directions import top_directions
from backdoor_lab.numerics.ranking import positives_left

Array = NDArray[Any]
BINS = 40
# If the scores span more than this factor, the bins are spaced logarithmically.
_WIDE, _LOWEST = 100.0, 0.005


@dataclass(frozen=True)
class Histogram:
    """Counts of clean and poisoned examples by score. `edges` float64 (b + 1,) are the edges of b
    bins; `clean` and `poison` int (b,) are the counts. If `log`, the bins are spaced
    logarithmically from the 0.5 % quantile of the positive scores, and the first bin also counts
    all lower scores. `cut`: see `cut_of`."""

    edges: Array
    clean: Array
    poison: Array
    log: bool
    cut: float | None


@dataclass(frozen=True)
class Curve:
    """A removal curve: how many poisoned images remain as examples are removed in order of
    decreasing score.

    `removed` int (m,): number of removed examples, 0 at the first point. `left` float64 (m,):
    number of poisoned images that remain. `total`: number of poisoned images. `scored`: number of
    poisoned images that have a score.
    """

    removed: Array
    left: Array
    total: int
    scored: int

    @property
    def by_chance(self) -> tuple[Array, Array]:
        """The curve expected for removal in random order: a straight line, given by the `removed`
        and `left` values of its two end points."""
        ends = self.removed[[0, -1]]
        return ends, np.array([self.total, self.total - self.scored], np.float64)


def histogram(scores: Array, is_poison: Array, keep: Array, bins: int = BINS) -> Histogram | None:
    """Returns the histogram of one class's scores, with separate counts of clean and poisoned
    examples.

    `scores` float64 (n,); `is_poison` and `keep` bool (n,). Scores that are not finite are ignored.
    Returns None if no score is finite.
    """
    seen = np.isfinite(scores)
    if not seen.any():
        return None
    values, positive = scores[seen], scores[seen & (scores > 0)]
    wide = len(positive) > len(values) / 2 and np.quantile(positive, 0.99) > _WIDE * np.quantile(
        positive, 0.01
    )
    if wide:
        edges = np.geomspace(np.quantile(positive, _LOWEST), positive.max(), bins + 1)
    else:
        low, high = values.min(), values.max()
        edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    inside = np.clip(values, edges[0], edges[-1])
    clean, poison = (np.histogram(inside[is_poison[seen] == kind], edges)[0] for kind in (0, 1))
    return Histogram(edges, clean, poison, bool(wide), cut_of(scores, keep))


def cut_of(scores: Array, keep: Array) -> float | None:
    """Returns the threshold at and above which examples were removed: halfway between the lowest
    removed and the highest kept score. None if nothing was removed or kept, or if a kept example
    scores higher than a removed one, so that no threshold separates them.

    >>> cut_of(np.array([1.0, 2.0, 4.0]), np.array([True, True, False]))
    3.0
    """
    seen = np.isfinite(scores)
    removed, kept = scores[seen & ~keep], scores[seen & keep]
    if not len(removed) or not len(kept) or kept.max() > removed.min():
        return None
    return float((kept.max() + removed.min()) / 2)


def projections(values: Array) -> Array:
    """Centers `values` float64 (n, d) and projects them onto their top two right singular
    directions: float64 (n, 2). Spectral signatures use the square of the first column as the score.

    The sign of a direction is arbitrary; here its entry of largest magnitude is positive. Without a
    second direction, the second column is 0.
    """
    centered = values - values.mean(axis=0)
    found = np.zeros((len(values), 2))
    _, vectors = top_directions(centered, 2)
    largest = np.abs(vectors).argmax(axis=0)
    signs = np.sign(vectors[largest, np.arange(vectors.shape[1])])
    found[:, : vectors.shape[1]] = centered @ (vectors * signs)
    return found


def removal_curve(scores: Array, is_poison: Array) -> Curve | None:
    """Returns the curve for removal in order of decreasing score.

    `scores` float64 (n,), `is_poison` bool (n,). If scores are tied, `left`, the number of poisoned
    examples that remain, is the mean over all orders of the tied examples. Examples without a score
    are never removed. Returns None if there are no scores or no poison.
    """
    seen = np.isfinite(scores)
    if not seen.any() or not is_poison.any():
        return None
    removed = np.arange(seen.sum() + 1)
    left = positives_left(np.where(seen, scores, np.nan), is_poison, removed)
    return Curve(removed, left, int(is_poison.sum()), int(is_poison[seen].sum()))


def operating_point(keep: Array, is_poison: Array) -> tuple[int, int]:
    """Returns the number of examples removed, and the number of poisoned examples kept."""
    return int(np.sum(~keep)), int(np.sum(keep & is_poison))


def recorded_curve(record: Mapping[str, Any]) -> tuple[Curve, tuple[int, int]] | None:
    """Returns the removal curve stored in a record, and the point (removed, left) that the defense
    reached. Both exclude cover images, which count as neither clean nor poisoned.

    Returns None if ``detection.curve`` is missing, is not finite, or rises anywhere.
    """
    try:
        found, counts = record["detection"]["curve"], record["counts"]
        removed = np.array(found["removed"], np.int64)
        left = np.array(found["left"], np.float64)
        covers = int(counts.get("n_covers") or 0) - int(counts.get("covers_left") or 0)
        at = int(counts["n_removed"]) - covers, int(counts["pois_left"])
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
        return None
    if removed.ndim != 1 or removed.shape != left.shape or len(left) < 2:
        return None
    if removed[0] != 0 or (np.diff(removed) <= 0).any() or not (np.diff(left) <= 0).all():
        return None
    if not 0 <= left[-1] <= left[0] < np.inf:
        return None
    return Curve(removed, left, round(left[0]), round(left[0] - left[-1])), at


def thinned(curve: Curve, points: int, keep: int = 0) -> Curve:
    """Returns at most `points` points of a curve, denser near its start, plus the point
    whose `removed` equals `keep`, if any."""
    m = len(curve.removed)
    if m <= points:
        return curve
    spread = np.rint((np.linspace(0, 1, points) ** 2) * (m - 1)).astype(int)
    where = np.union1d(spread, np.flatnonzero(curve.removed == keep))
    return Curve(curve.removed[where], curve.left[where], curve.total, curve.scored)


@dataclass(frozen=True)
class Picks:
    """Positions, int (b,), of examples to show, most suspicious first: removed poison (`removed`),
    clean examples removed by mistake (`mistaken`), and poison that was kept (`missed`)."""

    removed: Array
    mistaken: Array
    missed: Array


def picks(scores: Array, keep: Array, is_poison: Array, is_cover: Array, limit: int) -> Picks:
    """Selects at most `limit` examples for each field of `Picks`, highest scores first. Examples
    without a score come last, in the order of the training set."""
    order = np.argsort(-np.where(np.isfinite(scores), scores, -np.inf), kind="stable")
    clean = ~is_poison & ~is_cover
    masks = (~keep & is_poison, ~keep & clean, keep & is_poison)
    return Picks(*(order[mask[order]][:limit] for mask in masks))


def sampled(where: Array, limit: int) -> Array:
    """Returns `limit` evenly spaced entries of `where` int (n,), or all if there are fewer."""
    if len(where) <= limit:
        return where
    return where[np.linspace(0, len(where) - 1, limit).round().astype(int)]
