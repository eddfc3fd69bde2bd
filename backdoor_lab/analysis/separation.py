"""Explains why a spectral filter finds or misses a cell's poison. Uses the ground truth to compute
statistics of the target class's features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backdoor_lab.analysis.cell_artifacts import cell_artifacts, in_target
from backdoor_lab.analysis.directions import top_directions
from backdoor_lab.numerics.ranking import auroc
from backdoor_lab.results.artifact_reader import ArtifactReader

Array = NDArray[Any]
HEADS = {
    "share": "p", "shift": "p(1-p)δ²", "along": "Along δ", "own": "Own largest", "ratio": "Ratio",
    "cosine": "|cos|", "auroc_top": "AUROC top", "auroc_shift": "AUROC δ",
    "predicted": "Predicted",
}  # fmt: skip
NOTES = (
    "Features of the training images labeled as the target, without cover images; cells that share"
    " their features (such as other defenses) share one line. p: proportion of poison. δ: mean of"
    " the poisoned minus mean of the clean images.",
    "p(1-p)δ²: variance along δ due to the difference of the means. Along δ: total variance along"
    " δ, which adds the variance within the clean and within the poisoned images. Own largest: the"
    " largest variance of the clean images in any direction. Ratio: Along δ divided by Own largest;"
    " if it is well above 1, the direction of the filter is close to δ; if it is well below 1, the"
    " direction is that in which the clean images vary most.",
    "|cos|: absolute cosine between δ and the top singular direction of the centered class,"
    " which the filter uses.",
    "AUROC top: AUROC of the squared projection on that direction, which is the score of Tran, Li,"
    " Madry 2018. AUROC δ: AUROC of the squared projection on δ, which no filter knows. Predicted:"
    " the value of AUROC δ if clean and poisoned images are normally distributed along δ with equal"
    " variance.",
)


@dataclass(frozen=True)
class Separation:
    """Statistics of the features of a class that contains poisoned examples.

    δ is the mean of the poisoned examples minus the mean of the clean examples. The top direction
    is the top singular direction of the centered features of the class.

    - `share`: the fraction p of poisoned examples.
    - `shift`: the variance p (1 - p) |δ|² due to the difference between the two means. `along`: the
      total variance along δ.
    - `own`: the largest variance of the clean examples along any direction. `ratio`: `along`
      divided by `own`.
    - `cosine`: |cos| of the angle between δ and the top direction.
    - `auroc_top`, `auroc_shift`: AUROC of the squared projections on the top direction and on δ.
    - `predicted`: see `predicted_auroc`.

    Variances are in squared feature units. NaN if undefined (no variance, or equal means).
    """

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
    """Measures how well clean and poisoned examples separate. `values` are the features of one
    class, float64 (n, d); `is_poison` is bool (n,).

    Tran, Li, Madry, "Spectral Signatures in Backdoor Attacks", NeurIPS 2018, section 3: poison is
    detectable if its mean is far from the mean of the clean examples, relative to the covariance.
    Raises ValueError if all or none of the examples are poisoned.
    """
    n_poison = int(is_poison.sum())
    if not 0 < n_poison < len(values):
        raise ValueError(
            "the separation is undefined unless there are both clean and poisoned examples"
        )
    centered, share = values - values.mean(axis=0), n_poison / len(values)
    clean = values[~is_poison] - values[~is_poison].mean(axis=0)
    delta = values[is_poison].mean(axis=0) - values[~is_poison].mean(axis=0)
    length = float(np.linalg.norm(delta))
    unit = delta / length if length > 0 else np.full_like(delta, np.nan)
    direction, _ = _top(centered)
    _, own = _top(clean)
    along = float(np.square(centered @ unit).mean())
    shift = share * (1 - share) * length**2
    return Separation(
        share=share,
        shift=shift,
        along=along,
        own=own,
        ratio=along / own if own > 0 else float("nan"),
        cosine=abs(float(direction @ unit)),
        auroc_top=auroc(np.square(centered @ direction), is_poison),
        auroc_shift=auroc(np.square(centered @ unit), is_poison),
        predicted=predicted_auroc(share, length, along - shift),
    )


def separation_of(reader: ArtifactReader, record: dict[str, Any]) -> Separation | None:
    """Computes the `separation` of a cell's target class, in the features that the cell's filter
    used. None if the features are not stored or not finite, or if all or none of the examples are
    poisoned."""
    found = cell_artifacts(reader, record)
    if found is None:
        return None
    where = in_target(found)
    values = reader.features(record, where, len(found.training.index))
    poison = found.training.is_poison[where]
    if values is None or not np.isfinite(values).all() or poison.all() or not poison.any():
        return None
    return separation(values, poison)


def predicted_auroc(share: float, distance: float, variance: float) -> float:
    """Returns the AUROC of squared projections on δ for a class of which the fraction p, given by
    `share`, is poison. Along δ, clean and poisoned examples are assumed to be normally distributed,
    both with the variance `variance`, and with means that are `distance` apart.

    With d = distance / sqrt(variance), the clean examples are centered at -pd and the poisoned ones
    at (1-p)d, both with variance 1. The sum and the difference of a clean and a poisoned example
    are independent, so the square of the poisoned example is larger with probability

        Φ(d/√2) Φ((1-2p)d/√2) + Φ(-d/√2) Φ(-(1-2p)d/√2).

    Returns NaN unless the variance is positive.
    """
    from scipy.stats import norm

    if not variance > 0:
        return float("nan")
    d = distance / np.sqrt(2 * variance)
    between = (1 - 2 * share) * d
    return float(norm.cdf(d) * norm.cdf(between) + norm.cdf(-d) * norm.cdf(-between))


def _top(centered: Array) -> tuple[Array, float]:
    """Returns the first right singular direction of centered rows (n, d), and the variance along
    it: float64 (d,) and a number. If the rows have no variance: NaN and 0."""
    values, directions = top_directions(centered, 1)
    if not values[0] > 0:
        return np.full(centered.shape[1], np.nan), 0.0
    return directions[:, 0], float(np.square(values[0])) / len(centered)


def text(name: str, value: float) -> str:
    """Returns the value of statistic `name` as text for tables."""
    if not np.isfinite(value):
        return "–"
    return f"{value:.3g}" if name in ("shift", "along", "own") else f"{value:.3f}"
