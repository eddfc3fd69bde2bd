"""The numbers behind a cell's pictures: plain numpy arrays in, plain numpy arrays out."""

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
# Scores that span more than this factor are drawn on a logarithmic axis.
_WIDE, _LOWEST = 100.0, 0.005


@dataclass(frozen=True)
class Histogram:
    """How many examples have which score. `edges` float64 (b + 1,), `clean` and `poison` int
    (b,); `log`: the bins are equally wide in the logarithm, and the lowest half percent and what is
    not positive stand in the first; `cut`: see `cut_of`."""

    edges: Array
    clean: Array
    poison: Array
    log: bool
    cut: float | None


@dataclass(frozen=True)
class Curve:
    """`left` float64 (m,) poisoned images are still there once the `removed` int (m,) highest
    scores are gone; both start at nothing removed. `total` of all poison, `scored` of it ranked."""

    removed: Array
    left: Array
    total: int
    scored: int

    @property
    def by_chance(self) -> tuple[Array, Array]:
        """The same for a random order: expected poison left, a straight line's two ends."""
        ends = self.removed[[0, -1]]
        return ends, np.array([self.total, self.total - self.scored], np.float64)


def histogram(scores: Array, is_poison: Array, keep: Array, bins: int = BINS) -> Histogram | None:
    """The scores float64 (n,) of one class in `bins` bins, clean and poisoned apart.

    `is_poison` and `keep` bool (n,). Scores that are not finite are left out; None without any.
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
    """The score at and above which examples were removed: halfway between the lowest removed and
    the highest kept, or their common value on a tie. None if nothing was removed or kept, or if
    a kept example scores higher than a removed one: then the removal is no cut of the score."""
    seen = np.isfinite(scores)
    removed, kept = scores[seen & ~keep], scores[seen & keep]
    if not len(removed) or not len(kept) or kept.max() > removed.min():
        return None
    return float((kept.max() + removed.min()) / 2)


def projections(values: Array) -> Array:
    """`values` float64 (n, d) about their mean, along their top two right singular directions:
    float64 (n, 2), the axis that spectral signatures score by first.

    A direction's sign is free; here its largest entry by magnitude is positive. Zeros where
    there is no second direction.
    """
    centred = values - values.mean(axis=0)
    found = np.zeros((len(values), 2))
    _, vectors = top_directions(centred, 2)
    largest = np.abs(vectors).argmax(axis=0)
    signs = np.sign(vectors[largest, np.arange(vectors.shape[1])])
    found[:, : vectors.shape[1]] = centred @ (vectors * signs)
    return found


def removal_curve(scores: Array, is_poison: Array) -> Curve | None:
    """The poison left when the highest scores go first.

    `scores` float64 (n,), `is_poison` bool (n,). Of tied scores a random one goes first: `left`
    is then the expected number. Examples without a score are never removed. None without scores
    or without poison.
    """
    seen = np.isfinite(scores)
    if not seen.any() or not is_poison.any():
        return None
    removed = np.arange(seen.sum() + 1)
    left = positives_left(np.where(seen, scores, np.nan), is_poison, removed)
    return Curve(removed, left, int(is_poison.sum()), int(is_poison[seen].sum()))


def operating_point(keep: Array, is_poison: Array) -> tuple[int, int]:
    """How many examples were removed, and how many poisoned ones stayed."""
    return int(np.sum(~keep)), int(np.sum(keep & is_poison))


def recorded_curve(record: Mapping[str, Any]) -> tuple[Curve, tuple[int, int]] | None:
    """The removal curve that a record itself holds, and its operating point (removed, left), both
    without covers, which are neither clean nor poison.

    None where ``detection.curve`` is missing or is no falling curve of finite numbers.
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
    """At most `points` of a curve's points and the one where `keep` are removed, if it has one;
    denser where it starts."""
    m = len(curve.removed)
    if m <= points:
        return curve
    spread = np.rint((np.linspace(0, 1, points) ** 2) * (m - 1)).astype(int)
    where = np.union1d(spread, np.flatnonzero(curve.removed == keep))
    return Curve(curve.removed[where], curve.left[where], curve.total, curve.scored)


@dataclass(frozen=True)
class Picks:
    """Positions int (b,) of examples worth a look: poison that was `removed`, clean examples
    removed by mistake (`mistaken`), poison that was `missed`; most suspicious first."""

    removed: Array
    mistaken: Array
    missed: Array


def picks(scores: Array, keep: Array, is_poison: Array, is_cover: Array, limit: int) -> Picks:
    """At most `limit` examples of each kind, by their score; without a score they come last, in
    the order of the training set."""
    order = np.argsort(-np.where(np.isfinite(scores), scores, -np.inf), kind="stable")
    clean = ~is_poison & ~is_cover
    masks = (~keep & is_poison, ~keep & clean, keep & is_poison)
    return Picks(*(order[mask[order]][:limit] for mask in masks))


def sampled(where: Array, limit: int) -> Array:
    """`where` int (n,), or `limit` of them evenly spaced: the same every time."""
    if len(where) <= limit:
        return where
    return where[np.linspace(0, len(where) - 1, limit).round().astype(int)]
