"""Base classes of defenses, and the code that removes the examples with the highest scores."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from backdoor_lab import returned
from backdoor_lab.core import streams
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.lazy import Tensor, nn, torch
from backdoor_lab.core.progress import track
from backdoor_lab.core.rng import torch_generator
from backdoor_lab.core.types import Features, FilterResult
from backdoor_lab.defenses.budget import RemovalBudget, otsu_count
from backdoor_lab.defenses.context import DefenseContext
from backdoor_lab.defenses.options import DEFAULTS, OPTION_KEYS, UNKNOWN_TARGET, FilterOptions


@dataclass(frozen=True)
class DefenderKnowledge:
    """What a protocol reveals to a defense: `target`, the target class; `epsilon`, the number of
    poisoned images; `clean`, features of a small held-out clean set; `context`, images and models
    for defenses that require them. Whatever is not revealed is None."""

    classes: tuple[str, ...]
    target: int | None
    epsilon: int | None
    seed: int
    clean: Features | None = None
    context: DefenseContext | None = None


class Defense(ABC):
    """Base class of defenses. Decides which examples to keep, without knowing the ground truth."""

    @abstractmethod
    def __call__(self, features: Features, known: DefenderKnowledge) -> FilterResult:
        """Returns which training examples to keep. `features` has one row per training example."""

    def check(self, known: DefenderKnowledge, per_class: Sequence[int]) -> None:
        """Raises ConfigError, before any training, if the defense is bound to fail.

        `per_class` is the number of training examples per label.
        """

    def check_network(self, network: nn.Module, features: int) -> None:
        """Raises ConfigError, before any training, if the defense does not support the architecture
        of `network` or the number of features per image, `features`. Ignores the weights."""

    def requires(self) -> list[str]:
        """Returns what the defense requires: any of "target", "epsilon", "clean", "context" and
        "clean images". The last means `DefenseContext.clean`, and requires "context" as well."""
        return []

    def applied(self) -> dict[str, object]:
        """Returns the values of those fields of `FilterOptions` that the defense uses, as written
        to the record. By default, returns an empty dict."""
        return {}


class OracleControl(ABC):
    """Base class of controls that are given the ground truth, unlike defenses."""

    #: Whether replaced images are restored, in addition to removing poison.
    restores: ClassVar[bool] = False

    @abstractmethod
    def judge(self, is_poison: Tensor) -> FilterResult:
        """Returns the result, given the ground truth `is_poison`, bool (n,)."""


@dataclass(frozen=True)
class ClassScores:
    """The result of a filter for one class of n examples.

    `scores` float64 (n,): higher is more suspicious. `suspicion`: score of the whole class,
    comparable between classes. `auto`: number of examples to remove under ``removal_budget=auto``;
    if None, the result of `budget.otsu_count()` for the scores. `notes`: for the record.
    """

    scores: Tensor
    suspicion: float | None = None
    auto: int | None = None
    notes: dict[str, object] = field(default_factory=dict)


class SampleFilter(Defense):
    """A defense that scores each class separately and removes the examples with the highest scores.

    `unused` lists the fields of `FilterOptions` that have no effect: configurations that differ
    only in these are the same cell. Filters that use `center` must override `unused`."""

    unused: ClassVar[tuple[str, ...]] = ("center",)
    feature_layer: str | None = None  # Layer that yields the features; None: protocol.layer.
    options: FilterOptions = DEFAULTS  # For a subclass whose `__init__` does not call this one.

    def __init__(self, options: FilterOptions = DEFAULTS) -> None:
        self.obey(options)

    def obey(self, options: FilterOptions) -> None:
        """Sets the protocol's options for filters. `build` calls this after `__init__`, so that an
        `__init__` with the parameter `options` need not pass it on."""
        self.options = options
        ruled = type(self).suspicious_classes is not SampleFilter.suspicious_classes
        if self.scope == "suspicious" and not ruled:
            raise ConfigError(
                f"`defense.filter_scope=suspicious` is not defined for {type(self).__name__}, which"
                " has no rule for comparing classes: use defense.filter_scope=all or target"
            )

    @property
    def scope(self) -> str:
        """Which classes are scored: the value of `FilterOptions.filter_scope`."""
        return self.options.filter_scope

    @property
    def budget(self) -> RemovalBudget:
        """The rule for the number of examples to remove from a class."""
        return self.options.rule

    def applied(self) -> dict[str, object]:
        """Returns the values of all fields of `FilterOptions` except those in `unused`."""
        return {k: getattr(self.options, k) for k in OPTION_KEYS if k not in self.unused}

    @property
    def _scored_by(self) -> str:
        plain = type(self).score_classes is SampleFilter.score_classes
        return "score_class" if plain else "score_classes"

    @abstractmethod
    def score_class(self, values: Tensor, label: int, known: DefenderKnowledge) -> ClassScores:
        """Scores the examples of class `label`; `values` (n, d), n > 0, has one row per example."""

    def score_classes(
        self,
        features: Features,
        members: dict[int, Tensor],
        wanted: Iterable[int],
        known: DefenderKnowledge,
    ) -> dict[int, ClassScores]:
        """Scores the classes in `wanted`; `members` maps each class to the indices of its rows."""
        labels = track(wanted, "class")
        return {y: self.score_class(features.values[members[y]], y, known) for y in labels}

    def suspicious_classes(self, scores_of: dict[int, ClassScores]) -> list[int]:
        """Returns the classes that are filtered with ``filter_scope=suspicious``."""
        raise NotImplementedError

    def refine_scores(self, values: Tensor, scores: Tensor, removed: int, seed: int) -> Tensor:
        """Returns the final scores of a class. The examples with the highest final scores are
        removed; `removed` is the number of these examples. By default, returns `scores`."""
        return scores

    def requires(self) -> list[str]:
        return ["target"] * (self.scope == "target") + ["epsilon"] * self.budget.needs_epsilon

    def check(self, known: DefenderKnowledge, per_class: Sequence[int]) -> None:
        looked_at = [known.target] if self.scope == "target" else range(len(per_class))
        for label in looked_at:
            if label is None:
                raise ConfigError(UNKNOWN_TARGET)
            removed = self.budget.size(per_class[label], known.epsilon)
            if removed is not None and removed and per_class[label] <= removed:
                self._refuse(known, label, removed, per_class[label])

    def __call__(self, features: Features, known: DefenderKnowledge) -> FilterResult:
        returned.finite(features.values, "rows of features")
        found = [(y, (features.labels == y).nonzero().flatten()) for y in range(len(known.classes))]
        members = {label: where for label, where in found if len(where)}
        scores_of, notes = self._looks(features, members, known)
        scores = torch.full((len(features.labels),), torch.nan, dtype=torch.float64)
        keep = torch.ones(len(scores), dtype=torch.bool)
        for label, scored in scores_of.items():
            where = members[label]
            returned.finite(scored.scores, "scores", returned.name_of(self, self._scored_by))
            removed = self._removed(scored, known)
            if removed >= len(where):
                self._refuse(known, label, removed, len(where))
            by = self.refine_scores(features.values[where], scored.scores, removed, known.seed)
            by = returned.scores(self, "refine_scores", by, len(where))
            scores[where] = by.detach().double().cpu()
            keep[where[top_scoring(scores[where], removed, seed=known.seed)]] = False
        return FilterResult(scores, keep, notes)

    def _looks(
        self, features: Features, members: dict[int, Tensor], known: DefenderKnowledge
    ) -> tuple[dict[int, ClassScores], dict[str, object]]:
        wanted = [y for y in members if self.scope != "target" or y == known.target]
        found = self.score_classes(features, members, wanted, known)
        sizes = {label: len(where) for label, where in members.items()}
        scores_of = returned.scores_by_class(self, self._scored_by, found, ClassScores, sizes)
        notes: dict[str, object] = {}
        if self.scope == "suspicious":
            notes["suspicion"] = {
                known.classes[y]: scored.suspicion for y, scored in scores_of.items()
            }
            chosen = self.suspicious_classes(scores_of)
            chosen = returned.labels(self, "suspicious_classes", chosen, scores_of)
            scores_of = {y: scores_of[y] for y in chosen}
        notes["classes"] = [known.classes[y] for y in scores_of]
        said = {known.classes[y]: scored.notes for y, scored in scores_of.items() if scored.notes}
        return scores_of, notes | ({"per_class": said} if said else {})

    def _removed(self, scored: ClassScores, known: DefenderKnowledge) -> int:
        n = len(scored.scores)
        removed = self.budget.size(n, known.epsilon)
        if removed is not None:
            return removed
        asked = otsu_count(scored.scores) if scored.auto is None else scored.auto
        return self.budget.capped(asked, n, known.epsilon)

    def _refuse(self, known: DefenderKnowledge, label: int, removed: int, size: int) -> None:
        epsilon = "" if known.epsilon is None else f" with ε = {known.epsilon}"
        raise ConfigError(
            f"`defense.removal_budget={self.budget.text}`{epsilon} would remove {removed}"
            f" of the {size} examples of class {known.classes[label]}: nothing would be left. Lower"
            " the budget or the poisoning ratio, set defense.max_removed, for example to 50%, or"
            f" filter fewer classes (currently defense.filter_scope={self.scope})"
        )


def top_scoring(scores: Tensor, removed: int, *, seed: int) -> Tensor:
    """Returns the indices of the highest values in `scores` float64 (n,); `removed` says how many.

    Ties are broken at random with `seed`: breaking them by position would spare appended poison,
    which comes last. Raises DivergedError if a score is not finite.

    >>> top_scoring(torch.tensor([0.1, 0.9, 0.5]), 2, seed=0)
    tensor([1, 2])
    """
    returned.finite(scores, "scores")
    shuffled = torch.randperm(len(scores), generator=torch_generator(seed, streams.TIES))
    order = scores[shuffled].sort(descending=True, stable=True).indices
    return shuffled[order[:removed]]


def outliers(values: dict[int, float], threshold: float = 3.5) -> list[int]:
    """Returns the keys whose value has a modified z-score above `threshold`.

    >>> outliers({0: 1.0, 1: 1.1, 2: 0.9, 3: 9.0})
    [3]
    """
    x = torch.tensor(list(values.values()), dtype=torch.float64)
    z = modified_z(x).tolist()
    return [key for key, score in zip(values, z, strict=True) if score > threshold]


def modified_z(x: Tensor) -> Tensor:
    """Returns modified z-scores of `x` float64 (..., k) along the last dimension; same shape.

    z = 0.6745 (x - median) / MAD (Iglewicz and Hoaglin 1993, section 3.3).
    """
    deviation = x - x.quantile(0.5, dim=-1, keepdim=True)
    mad = deviation.abs().quantile(0.5, dim=-1, keepdim=True)
    return 0.6745 * deviation / mad.clamp(min=torch.finfo(torch.float64).tiny)


def suspects_by_size(scores_of: dict[int, ClassScores], false_alarms: float = 0.01) -> list[int]:
    """Returns the classes whose `suspicion`, which must be positive, is unusually large.

    Compares the modified z-scores of the logarithms with a threshold. If the logarithms are normal,
    `false_alarms` is the probability that at least one class exceeds the threshold. (With the usual
    threshold of 3.5, this probability would be 7 % for ten classes.)
    """
    tiny = torch.finfo(torch.float64).tiny
    sizes = torch.tensor(
        [scored.suspicion or 0.0 for scored in scores_of.values()], dtype=torch.float64
    )
    logs = sizes.clamp(min=tiny).log().tolist()
    threshold = critical_z(len(scores_of), false_alarms)
    return outliers(dict(zip(scores_of, logs, strict=True)), threshold)


@functools.cache
def critical_z(k: int, false_alarms: float) -> float:
    """Returns the modified z-score that the largest of `k` normal values exceeds with probability
    `false_alarms`, simulated with a fixed seed. Infinite if `k` is below 3, since so few values
    cannot be compared. Up to k = 200 the relative error of the probability is below 10 %."""
    if k < 3:
        return float("inf")
    draws = min(20_000, 4_000_000 // k)
    generator = torch_generator(0, streams.MODIFIED_Z, k)
    x = torch.randn(draws, k, dtype=torch.float64, generator=generator)
    return float(modified_z(x).amax(dim=1).quantile(1 - false_alarms))


def row_order(values: Tensor) -> Tensor:
    """Returns an order, int64 (n,), of the rows of `values` (n, d) that depends only on the content
    of the rows.

    Methods that draw rows, as a sample or as starting points, use this order, so that an example's
    score does not depend on its position in the set.
    """
    rows = values.double().cpu().contiguous().numpy()
    return torch.tensor(sorted(range(len(rows)), key=lambda i: rows[i].tobytes()))
