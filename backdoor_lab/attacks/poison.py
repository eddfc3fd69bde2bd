"""Which training images are poisoned, how many, and what the training set is afterwards."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from backdoor_lab import checks
from backdoor_lab.errors import ConfigError
from backdoor_lab.seeds import torch_generator
from backdoor_lab.types import Images, Poisoned, TrainingSet

RATIO_OF = ("target", "all", "source", "count")
INJECT = ("append", "replace")
ELIGIBLE = ("not_target", "all", "source")
ASR_ON = ("not_target", "source", "all")
STAMP = ("before", "after")


@dataclass(frozen=True)
class Plan:
    """One attack, with every word that papers use differently said out loud.

    `target` and `source` are class numbers. `ratio` counts against the target class, the whole
    training set, the source class, or is itself a count (`ratio_of`); a poisoned image is
    appended or replaces its original (`inject`); it is made from any image outside the target
    class, from any image, or from the source class (`eligible`).
    """

    target: int
    source: int | None
    ratio: float
    ratio_of: str = "target"
    inject: str = "append"
    eligible: str = "not_target"
    asr_on: str = "not_target"
    stamp: str = "before"

    def __post_init__(self) -> None:
        checks.choice("protocol.ratio_of", self.ratio_of, RATIO_OF)
        checks.choice("protocol.inject", self.inject, INJECT)
        checks.choice("protocol.eligible", self.eligible, ELIGIBLE)
        checks.choice("protocol.asr_on", self.asr_on, ASR_ON)
        checks.choice("protocol.stamp", self.stamp, STAMP)
        if self.ratio_of == "count":
            checks.whole("ratio", self.ratio, low=0)
        else:
            checks.number("ratio", self.ratio, low=0, below=1)
        self._check_source()

    def _check_source(self) -> None:
        if self.source == self.target:
            raise ConfigError(f"`source` and `target` must differ, both are class {self.target}")
        for key in ("ratio_of", "eligible", "asr_on"):
            if getattr(self, key) == "source" and self.source is None:
                raise ConfigError(f"`protocol.{key}=source` needs a class in `source`, got null")
        if self.source is not None and self.eligible != "source":
            raise ConfigError(
                f"`source` is set, but `protocol.eligible={self.eligible}` ignores it;"
                " set protocol.eligible=source, or source=null"
            )


def count(plan: Plan, per_class: Sequence[int]) -> int:
    """How many images the plan poisons in a set with `per_class` images of each class.

    Raises ConfigError, with the arithmetic, when that is less than one image or more than are
    eligible. A ratio of 0 is a clean run.
    """
    against = _counted_against(plan, per_class)
    wanted = round(plan.ratio * against)
    if plan.ratio > 0 and wanted < 1:
        raise ConfigError(
            f"`ratio`={plan.ratio:g} of {against} images (protocol.ratio_of={plan.ratio_of}) is"
            " less than one image; give a larger ratio, or 0 for a clean run"
        )
    available = eligible_count(plan, per_class)
    if wanted > available:
        raise ConfigError(
            f"`ratio`={plan.ratio:g} of {against} images (protocol.ratio_of={plan.ratio_of}) asks"
            f" for {wanted} poisoned images, but only {available} are eligible"
            f" (protocol.eligible={plan.eligible})"
        )
    return wanted


def eligible_count(plan: Plan, per_class: Sequence[int]) -> int:
    """How many training images may be poisoned."""
    if plan.eligible == "source" and plan.source is not None:
        return per_class[plan.source]
    return sum(per_class) - (per_class[plan.target] if plan.eligible == "not_target" else 0)


def classes_after(labels: Tensor, plan: Plan, *, classes: int, seed: int) -> list[int]:
    """How many training examples each label has once the poison is in, exactly: `poison` draws
    the same images from `labels` int64 (n,) with the same seed."""
    sizes: list[int] = torch.bincount(labels, minlength=classes).tolist()
    chosen = _choose(labels, plan, count(plan, sizes), seed)
    after = torch.tensor(sizes)
    after[plan.target] += len(chosen)
    if plan.inject == "replace":
        after -= torch.bincount(labels[chosen], minlength=classes)
    found: list[int] = after.tolist()
    return found


def poison(
    train: Images, trigger: Callable[[Tensor], Tensor], plan: Plan, *, seed: int
) -> Poisoned:
    """The training set after the attack.

    The chosen images are drawn without replacement from the eligible ones by a generator that
    depends on `seed` alone, so that two triggers poison the same images. With
    ``plan.stamp == "after"`` the rows stay clean and carry the trigger as a function, applied
    after augmentation.
    """
    per_class = torch.bincount(train.labels, minlength=len(train.classes)).tolist()
    chosen = _choose(train.labels, plan, count(plan, per_class), seed)
    originals = train.images[chosen]
    before = plan.stamp == "before"
    rows = trigger(originals) if before and len(chosen) else originals
    index, labels, is_poison = _laid_over(train, chosen, plan)
    stamp = None if before or not len(chosen) else trigger
    training = TrainingSet(train.images, rows, index, labels, train.classes, "", stamp)
    return Poisoned(training, is_poison, chosen)


def content_digest(training: TrainingSet, base_digest: str, stamp: str = "") -> str:
    """A hash of what a network sees: two routes to the same images, labels and order agree.

    `stamp` names the trigger when it is applied after augmentation.
    """
    laid_over = training.index >= len(training.base)
    used = training.rows[training.index[laid_over] - len(training.base)]
    where = torch.where(laid_over, torch.full_like(training.index, -1), training.index)
    text = hashlib.sha256(f"{base_digest}/{stamp if len(used) else ''}".encode())
    for part in (where, training.labels, used):
        text.update(str(tuple(part.shape)).encode())
        text.update(part.contiguous().numpy().tobytes())
    return text.hexdigest()


def asr_test_set(labels: Tensor, plan: Plan) -> Tensor:
    """Positions int64 of the test images on which the attack success rate is measured."""
    if plan.asr_on == "all":
        return torch.arange(len(labels))
    if plan.asr_on == "source" and plan.source is not None:
        return labels.eq(plan.source).nonzero().flatten()
    return labels.ne(plan.target).nonzero().flatten()


def _counted_against(plan: Plan, per_class: Sequence[int]) -> int:
    if plan.ratio_of == "count":
        return 1
    if plan.ratio_of == "all":
        return sum(per_class)
    of_source = plan.ratio_of == "source" and plan.source is not None
    return per_class[plan.source if of_source and plan.source is not None else plan.target]


def _choose(labels: Tensor, plan: Plan, wanted: int, seed: int) -> Tensor:
    if plan.eligible == "source" and plan.source is not None:
        mask = labels.eq(plan.source)
    elif plan.eligible == "not_target":
        mask = labels.ne(plan.target)
    else:
        mask = torch.ones_like(labels, dtype=torch.bool)
    eligible = mask.nonzero().flatten()
    order = torch.randperm(len(eligible), generator=torch_generator(seed, "poison"))
    return eligible[order[:wanted]].sort().values


def _laid_over(train: Images, chosen: Tensor, plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
    rows = len(train) + torch.arange(len(chosen))
    if plan.inject == "append":
        index = torch.cat([torch.arange(len(train)), rows])
        labels = torch.cat([train.labels, torch.full_like(chosen, plan.target)])
    else:
        index, labels = torch.arange(len(train)), train.labels.clone()
        index[chosen], labels[chosen] = rows, plan.target
    return index, labels, index >= len(train)
