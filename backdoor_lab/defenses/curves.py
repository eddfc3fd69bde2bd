"""How well scores tell poison from clean examples: ROC, precision, and what is left."""

from __future__ import annotations

import numpy as np

from backdoor_lab.core.lazy import Tensor, torch
from backdoor_lab.numerics.ranking import positives_left, roc_steps

POINTS = 200


def curves(scores: Tensor, is_poison: Tensor) -> dict[str, object] | None:
    """Figures of a ranking, fit for a record; None without any poison.

    `scores` float64 (n,), higher is more suspicious, NaN where a defense did not look;
    `is_poison` bool (n,). `auroc`, `average_precision` and `tpr_at_fpr` are over the scored
    examples, None when they are of one kind. `left`: see `poison_left`.
    """
    if not bool(is_poison.any()):
        return None
    seen = ~torch.isnan(scores)
    ranked, positive = scores[seen], is_poison[seen]
    both = bool(positive.any()) and not bool(positive.all())
    tpr = {f"{limit:g}": tpr_at_fpr(ranked, positive, limit) for limit in (0.01, 0.05)}
    return {
        "auroc": auroc(ranked, positive) if both else None,
        "average_precision": average_precision(ranked, positive) if both else None,
        "tpr_at_fpr": tpr if both else None,
        "left": poison_left(scores, is_poison),
    }


def auroc(scores: Tensor, positive: Tensor) -> float:
    """The chance that a positive example scores above a negative one; ties count half.

    `scores` (n,) without NaN, `positive` bool (n,) of both kinds.
    """
    true, false = _steps(scores, positive)
    area = torch.trapezoid(true / true[-1], false / false[-1])
    return float(area)


def average_precision(scores: Tensor, positive: Tensor) -> float:
    """Sum over thresholds of the precision there times the recall gained there.

    Arguments as for `auroc`. Tied examples pass a threshold together.
    """
    true, false = _steps(scores, positive)
    precision = true[1:] / (true[1:] + false[1:])
    return float((precision * true.diff()).sum() / true[-1])


def tpr_at_fpr(scores: Tensor, positive: Tensor, limit: float) -> float | None:
    """The largest share of positive examples above a threshold that at most a share `limit` of
    the negative ones passes; no threshold parts ties. None when one kind is missing."""
    true, false = _steps(scores, positive)
    if not float(true[-1]) or not float(false[-1]):
        return None
    return float(true[false <= limit * false[-1]].max() / true[-1])


def poison_left(scores: Tensor, is_poison: Tensor, points: int = POINTS) -> list[tuple[int, float]]:
    """Pairs (examples removed, poison left), the highest scores removed first.

    At most `points` pairs, dense at the start, from nothing removed to everything scored. What
    was not scored is not removed and its poison counts as left. Ties are removed in random
    order: the mean over such orders.
    """
    n = int((~torch.isnan(scores)).sum())
    # Steps grow towards the end: most is decided among the first removals.
    at = np.unique(np.rint(np.square(np.linspace(0, 1, points)) * n))
    left = positives_left(scores.numpy(), is_poison.numpy(), at).tolist()
    return [(int(removed), round(rest, 6)) for removed, rest in zip(at.tolist(), left, strict=True)]


def _steps(scores: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
    # The sums that follow are torch's: in another order of summation NumPy's differ from the
    # figures of earlier records in their last digit.
    true, false = roc_steps(scores.numpy(), positive.numpy())
    return torch.from_numpy(true), torch.from_numpy(false)
