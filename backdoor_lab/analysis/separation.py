"""Why a spectral filter finds the poison of a cell, or does not: the target class' features, told
apart with the truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backdoor_lab.analysis.directions import top_directions
from backdoor_lab.analysis.material import in_target, material
from backdoor_lab.numerics.ranking import auroc
from backdoor_lab.results.stored import Shelf

Array = NDArray[Any]
HEADS = {
    "share": "p", "shift": "p(1-p)δ²", "along": "Along δ", "own": "Own largest", "ratio": "Ratio",
    "cosine": "|cos|", "auroc_top": "AUROC top", "auroc_shift": "AUROC δ",
    "predicted": "Predicted",
}  # fmt: skip
NOTES = (
    "Features of the training images labelled as the target, covers left out; cells that share"
    " their features (other defenses, other readings of them) have one line. p: share of poison."
    " δ: mean of the poisoned minus mean of the clean ones.",
    "p(1-p)δ²: the variance that the poison's being elsewhere adds along δ. Along δ: all variance"
    " along δ, this and what both kinds vary by themselves. Own largest: the largest variance of"
    " the clean ones in any direction. Ratio: along δ over own largest; well above 1 the filter"
    " looks along δ, well below it along the class' own largest variance.",
    "|cos|: between δ and the top singular direction of the centred class, which the filter takes.",
    "AUROC top: of the squared projection on that direction, the score of Tran, Li, Madry 2018;"
    " AUROC δ: of the squared projection on δ, which no filter knows. Predicted: what AUROC δ is"
    " where both kinds are normally distributed along δ, with one and the same variance.",
)


@dataclass(frozen=True)
class Separation:
    """Of a class' features: `share` of poison p, `shift` p(1-p)|δ|² with δ the difference of the
    means, `along` the whole's variance along δ, `own` the largest variance of the clean examples,
    `ratio` of the two, `cosine` |cos| between δ and the whole's top direction, and the AUROC of
    the squared projections on the top direction and on δ, the latter also as `predicted_auroc`
    has it. Variances in squared units of the features; NaN where one is not defined (nothing
    varies, or the means are the same)."""

    share: float
    shift: float
    along: float
    own: float
    ratio: float
    cosine: float
    auroc_top: float
    auroc_shift: float
    predicted: float


def separation(values: Array, is_poison: Array) -> Separation:
    """Of `values` float64 (n, d) and `is_poison` bool (n,), both kinds among them.

    Tran, Li, Madry, "Spectral Signatures in Backdoor Attacks", NeurIPS 2018, section 3: the
    poison can be told apart where its mean lies far off by the measure of the covariance.
    Raises ValueError where one kind is missing.
    """
    n_poison = int(is_poison.sum())
    if not 0 < n_poison < len(values):
        raise ValueError("both clean and poisoned examples are needed")
    centred, share = values - values.mean(axis=0), n_poison / len(values)
    clean = values[~is_poison] - values[~is_poison].mean(axis=0)
    delta = values[is_poison].mean(axis=0) - values[~is_poison].mean(axis=0)
    length = float(np.linalg.norm(delta))
    unit = delta / length if length > 0 else np.full_like(delta, np.nan)
    direction, _ = _top(centred)
    _, own = _top(clean)
    along = float(np.square(centred @ unit).mean())
    shift = share * (1 - share) * length**2
    return Separation(
        share=share,
        shift=shift,
        along=along,
        own=own,
        ratio=along / own if own > 0 else float("nan"),
        cosine=abs(float(direction @ unit)),
        auroc_top=auroc(np.square(centred @ direction), is_poison),
        auroc_shift=auroc(np.square(centred @ unit), is_poison),
        predicted=predicted_auroc(share, length, along - shift),
    )


def separation_of(shelf: Shelf, record: dict[str, Any]) -> Separation | None:
    """Of the target class in the features that a cell's filter looked at; None where the store
    does not have them, they are not finite, or one kind is missing."""
    found = material(shelf, record)
    if found is None:
        return None
    where = in_target(found)
    values = shelf.features(record, where, len(found.training.index))
    poison = found.training.is_poison[where]
    if values is None or not np.isfinite(values).all() or poison.all() or not poison.any():
        return None
    return separation(values, poison)


def predicted_auroc(share: float, distance: float, variance: float) -> float:
    """The AUROC of squared projections on δ where a `share` p of a class is poison whose mean lies
    `distance` from that of the rest, and both kinds are normal along δ with this `variance`.

    With d = distance / sqrt(variance), the clean ones lie around -pd and the poison around
    (1-p)d, both with variance 1. Sum and difference of one of each are independent, so that the
    larger square is the poison's with Φ(d/√2) Φ((1-2p)d/√2) + Φ(-d/√2) Φ(-(1-2p)d/√2). NaN where
    the variance is not above 0.
    """
    from scipy.stats import norm

    if not variance > 0:
        return float("nan")
    d = distance / np.sqrt(2 * variance)
    between = (1 - 2 * share) * d
    return float(norm.cdf(d) * norm.cdf(between) + norm.cdf(-d) * norm.cdf(-between))


def _top(centred: Array) -> tuple[Array, float]:
    """The top right singular direction float64 (d,) of centred rows (n, d), and the variance
    along it; NaN and 0 where nothing varies."""
    values, directions = top_directions(centred, 1)
    if not values[0] > 0:
        return np.full(centred.shape[1], np.nan), 0.0
    return directions[:, 0], float(np.square(values[0])) / len(centred)


def text(name: str, value: float) -> str:
    """A figure as a table shows it."""
    if not np.isfinite(value):
        return "–"
    return f"{value:.3g}" if name in ("shift", "along", "own") else f"{value:.3f}"
