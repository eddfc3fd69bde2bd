"""Metrics of how well scores detect poison: ROC, precision, and poison left after removal."""

from __future__ import annotations

import numpy as np

from backdoor_lab.core.lazy import Tensor, torch
from backdoor_lab.numerics.ranking import positives_left, roc_steps

POINTS = 200


def curves(scores: Tensor, is_poison: Tensor) -> dict[str, object] | None:
    """Returns detection metrics of the scores, for the record; None if there is no poison.

    `scores` float64 (n,), higher is more suspicious, NaN for examples that were not scored;
    `is_poison` bool (n,). `auroc`, `average_precision` and `tpr_at_fpr` are over the scored
    examples, None if these are all poison or all clean. `left`: see `poison_left`.
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
    """Returns the probability that a positive example scores above a negative one; ties count half.

    `scores` (n,) must not contain NaN; `positive` bool (n,) must contain both values.

    >>> auroc(torch.tensor([0.1, 0.4, 0.3, 0.9]), torch.tensor([False, True, False, True]))
    1.0
    """
    true, false = _steps(scores, positive)
    area = torch.trapezoid(true / true[-1], false / false[-1])
    return float(area)


def average_precision(scores: Tensor, positive: Tensor) -> float:
    """Returns the sum over thresholds of the precision times the increase in recall.

    Arguments as for `auroc`. Tied examples share a threshold.
    """
    true, false = _steps(scores, positive)
    precision = true[1:] / (true[1:] + false[1:])
    return float((precision * true.diff()).sum() / true[-1])


def tpr_at_fpr(scores: Tensor, positive: Tensor, limit: float) -> float | None:
    """Returns the largest true positive rate at any threshold whose false positive rate is at most
    `limit`. Tied examples share a threshold. None unless there are positive and negative
    examples."""
    true, false = _steps(scores, positive)
    if not float(true[-1]) or not float(false[-1]):
        return None
    return float(true[false <= limit * false[-1]].max() / true[-1])


def poison_left(scores: Tensor, is_poison: Tensor, points: int = POINTS) -> list[tuple[int, float]]:
    """Returns pairs (examples removed, poison left) for removal from the highest score down.

    There are at most `points` pairs. The steps between them are smaller at the start, and in the
    last pair, all scored examples are removed. Examples without a score are never removed, so their
    poison always counts as left. For ties the result is the mean over random orders.
    """
    n = int((~torch.isnan(scores)).sum())
    # Steps grow towards the end, since the first removals matter most.
    at = np.unique(np.rint(np.square(np.linspace(0, 1, points)) * n))
    left = positives_left(scores.numpy(), is_poison.numpy(), at).tolist()
    return [(int(removed), round(rest, 6)) for removed, rest in zip(at.tolist(), left, strict=True)]


def _steps(scores: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
    # Summed by torch: NumPy sums in a different order, which changes the last digit of the
    # values in earlier records.
    true, false = roc_steps(scores.numpy(), positive.numpy())
    return torch.from_numpy(true), torch.from_numpy(false)
