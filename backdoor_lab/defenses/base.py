"""What every defense is, and the cut that all filters share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from backdoor_lab import checks
from backdoor_lab.defenses.budget import Budget, split
from backdoor_lab.errors import ConfigError, Diverged
from backdoor_lab.seeds import torch_generator
from backdoor_lab.types import Features, Verdict

SCOPES = ("target", "all", "suspicious")


@dataclass(frozen=True)
class Knowledge:
    """What a defense is told. `target` the attacked class, `epsilon` the number of poisoned
    images; None where the protocol does not tell it."""

    classes: tuple[str, ...]
    target: int | None
    epsilon: int | None
    seed: int


class Defense(ABC):
    """Looks at features and labels, never at the truth, and says which examples to keep."""

    @abstractmethod
    def __call__(self, features: Features, known: Knowledge) -> Verdict:
        """The verdict on `features`, one row per training example."""

    def check(self, known: Knowledge, per_class: Sequence[int]) -> None:
        """Raises ConfigError, before any training, when the defense could not end well.

        `per_class` is the number of examples of each label.
        """

    def told(self) -> list[str]:
        """What the defense needs to know: "target", "epsilon", or nothing."""
        return []


class TruthControl(ABC):
    """A control that is no defense: it is handed the truth, and says so by its type."""

    @abstractmethod
    def judge(self, is_poison: Tensor) -> Verdict:
        """The verdict, given `is_poison` bool (n,)."""


class Filter(Defense):
    """A defense that scores each class by itself and removes the highest scores.

    `classes`: look at the `target` class, at `all`, or at those that are `suspicious` by the
    filter's own account. `budget`, `budget_cap`: see `budget.Budget`.
    """

    def __init__(
        self, *, classes: str = "target", budget: str = "1.5eps", budget_cap: str | None = None
    ) -> None:
        self.scope = checks.choice("defense.classes", classes, SCOPES)
        self.budget = Budget(budget, budget_cap)

    @abstractmethod
    def scores(self, values: Tensor) -> Tensor:
        """How suspicious each row of `values` float32 (n, d) of one class is: float64 (n,)."""

    def suspicion(self, values: Tensor) -> float:
        """How suspicious a whole class is; only compared with the other classes."""
        raise ConfigError(f"`defense.classes=suspicious` is not defined for {type(self).__name__}")

    def told(self) -> list[str]:
        return ["target"] * (self.scope == "target") + ["epsilon"] * self.budget.needs_epsilon

    def check(self, known: Knowledge, per_class: Sequence[int]) -> None:
        looked_at = [known.target] if self.scope == "target" else range(len(per_class))
        for label in looked_at:
            if label is None:
                raise ConfigError("`defense.classes=target` needs to know the target class")
            removed = self.budget.size(per_class[label], known.epsilon)
            if removed is not None and removed and per_class[label] <= removed:
                self._refuse(known, label, removed, per_class[label])

    def __call__(self, features: Features, known: Knowledge) -> Verdict:
        members = {
            label: (features.labels == label).nonzero().flatten()
            for label in range(len(known.classes))
        }
        finite(features.values, "rows of features")
        looked_at, notes = self._looked_at(features, members, known)
        scores = torch.full((len(features.labels),), torch.nan, dtype=torch.float64)
        keep = torch.ones(len(scores), dtype=torch.bool)
        for label in looked_at:
            where = members[label]
            scores[where] = self.scores(features.values[where]).double().cpu()
            removed = self.budget.size(len(where), known.epsilon)
            if removed is None:
                finite(scores[where], "scores")
                removed = self.budget.capped(split(scores[where]), len(where), known.epsilon)
            if removed >= len(where) > 0:
                self._refuse(known, label, removed, len(where))
            keep[where[cut(scores[where], removed, seed=known.seed)]] = False
        return Verdict(scores, keep, notes)

    def _looked_at(
        self, features: Features, members: dict[int, Tensor], known: Knowledge
    ) -> tuple[list[int], dict[str, object]]:
        filled = [label for label, where in members.items() if len(where)]
        notes: dict[str, object] = {}
        if self.scope == "target":
            filled = [label for label in filled if label == known.target]
        elif self.scope == "suspicious":
            stands_out = {y: self.suspicion(features.values[members[y]]) for y in filled}
            filled = outliers(stands_out)
            notes["suspicion"] = {known.classes[y]: value for y, value in stands_out.items()}
        notes["classes"] = [known.classes[label] for label in filled]
        return filled, notes

    def _refuse(self, known: Knowledge, label: int, removed: int, size: int) -> None:
        raise ConfigError(
            f"`defense.budget={self.budget.text}` with ε = {known.epsilon} removes {removed} of"
            f" the {size} examples of class {known.classes[label]}: nothing would be left. Lower"
            " the budget or the ratio, set defense.budget_cap (50%), or look at fewer classes"
            f" (now defense.classes={self.scope})"
        )


def cut(scores: Tensor, removed: int, *, seed: int) -> Tensor:
    """Positions int64 (removed,) of the highest of `scores` float64 (n,).

    Ties are broken at random, by `seed`: neither by position, since appended poison stands
    last, nor by removing all of them. Raises Diverged when a score is not finite: NaN has no
    rank.
    """
    finite(scores, "scores")
    shuffled = torch.randperm(len(scores), generator=torch_generator(seed, "ties"))
    order = scores[shuffled].sort(descending=True, stable=True).indices
    return shuffled[order[:removed]]


def finite(values: Tensor, what: str) -> None:
    """Raises Diverged when one of `values` (n, ...) is NaN or infinite."""
    good = torch.isfinite(values)
    good = good if good.ndim == 1 else good.all(dim=1)
    bad = (~good).nonzero().flatten()
    if len(bad):
        raise Diverged(
            f"{len(bad)} of {len(values)} {what} are not finite, the first at position"
            f" {int(bad[0])}: they cannot be ranked"
        )


def outliers(values: dict[int, float], threshold: float = 3.5) -> list[int]:
    """The keys whose value stands out upward: modified z-score above `threshold`.

    z = 0.6745 (x - median) / MAD (Iglewicz and Hoaglin 1993, section 3.3, who give 3.5).
    """
    x = torch.tensor(list(values.values()), dtype=torch.float64)
    deviation = x - x.quantile(0.5)
    mad = deviation.abs().quantile(0.5)
    z = 0.6745 * deviation / mad.clamp(min=torch.finfo(torch.float64).tiny)
    return [key for key, score in zip(values, z.tolist(), strict=True) if score > threshold]
