"""One attack with every word that papers use differently said out loud."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from backdoor_lab.core import checks
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.lazy import Tensor, torch

LABELS = ("all_to_one", "all_to_all", "clean")
RATIO_OF = ("target", "all", "source", "count")
INJECT = ("append", "replace")
ELIGIBLE = ("not_target", "all", "source", "target")
ASR_ON = ("not_target", "source", "all")
STAMP = ("before", "after")


class SameClass(ConfigError):
    """Source and target are the same class; a sweep leaves such cells out."""


@dataclass(frozen=True)
class Plan:
    """Whom an attack poisons, how much, with which labels, and on whom its success is measured.

    `target` and `source` are class numbers. `ratio` counts against the target class, the whole
    training set, the source class, or is itself a count (`ratio_of`); a poisoned image is
    appended or replaces its original (`inject`); it is made from any image outside the target
    class, from any image, from the source class, or from the target class (`eligible`).

    `labels`: ``all_to_one``, poison is labelled as the target (with a source class: one to
    one); ``all_to_all``, as the class after its own, and a ratio of the target counts on every
    class; ``clean``, only target-class images, whose labels are true. `covers` for each
    poisoned image are triggered too, keep their labels, and come from outside the target and
    source class.
    """

    target: int
    source: int | None
    ratio: float
    ratio_of: str = "target"
    inject: str = "append"
    eligible: str = "not_target"
    asr_on: str = "not_target"
    stamp: str = "before"
    labels: str = "all_to_one"
    covers: float = 0.0

    def __post_init__(self) -> None:
        checks.choice("protocol.ratio_of", self.ratio_of, RATIO_OF)
        checks.choice("protocol.inject", self.inject, INJECT)
        checks.choice("protocol.eligible", self.eligible, ELIGIBLE)
        checks.choice("protocol.asr_on", self.asr_on, ASR_ON)
        checks.choice("protocol.stamp", self.stamp, STAMP)
        checks.choice("labels", self.labels, LABELS)
        checks.number("covers", self.covers, low=0, below=1000)
        check_ratio(self.ratio, self.ratio_of)
        self._check_source()
        self._check_labels()

    def _check_source(self) -> None:
        check_pair(self.source, self.target)
        for key in ("ratio_of", "eligible", "asr_on"):
            if getattr(self, key) == "source" and self.source is None:
                raise ConfigError(f"`protocol.{key}=source` needs a class in `source`, got null")
        if self.source is not None and self.labels == "all_to_all":
            raise ConfigError("`labels=all_to_all` attacks every class: take `source` out")
        if self.source is not None and self.eligible != "source" and self.labels != "clean":
            raise ConfigError(
                f"`source` is set, but `protocol.eligible={self.eligible}` ignores it;"
                " set protocol.eligible=source, or source=null"
            )

    def _check_labels(self) -> None:
        if (self.labels == "clean") != (self.eligible == "target"):
            raise ConfigError(
                f"`labels={self.labels}` and `protocol.eligible={self.eligible}` contradict each"
                " other: with clean labels, and only then, images of the target class are poisoned"
            )
        if self.labels == "all_to_all" and (self.eligible, self.asr_on) != ("all", "all"):
            raise ConfigError(
                "`labels=all_to_all` needs protocol.eligible=all and protocol.asr_on=all, got"
                f" {self.eligible} and {self.asr_on}"
            )
        if self.covers and self.labels == "all_to_all":
            raise ConfigError("`labels=all_to_all` leaves no class for `covers`: set covers=0")

    def given(self, labels: Tensor, classes: int) -> Tensor:
        """The labels int64 (n,) that poison made from images of classes `labels` gets."""
        return labels if self.labels == "clean" else self.wanted(labels, classes)

    def wanted(self, labels: Tensor, classes: int) -> Tensor:
        """What a triggered test image of each class `labels` int64 (n,) shall be taken for."""
        if self.labels == "all_to_all":
            return (labels + 1) % classes
        return torch.full_like(labels, self.target)


def check_pair(source: int | None, target: int, classes: Sequence[str] = ()) -> None:
    """Raises SameClass where source and target are one class, with its name out of `classes`."""
    if source == target:
        name = f" ({classes[target]})" if classes else ""
        raise SameClass(f"`source` and `target` must differ, both are class {target}{name}")


def check_ratio(ratio: object, ratio_of: object) -> None:
    """Raises ConfigError for what is neither a number of images, where `ratio_of` is ``count``,
    nor a share from 0 to 1."""
    if ratio_of == "count":
        checks.whole("ratio", ratio, low=0)
    else:
        checks.share("ratio", ratio)


def implied(labels: str, *, on_source: bool) -> dict[str, Any]:
    """The words of a protocol that a label mode, or an attack on one source class, decides."""
    if labels == "all_to_all":
        return {"eligible": "all", "asr_on": "all"}
    words = {"eligible": "source", "asr_on": "source"} if on_source else {}
    if labels == "clean":
        # Appended, an image would stand beside itself with the same label.
        words |= {"eligible": "target", "inject": "replace"}
    return words


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


def cover_count(plan: Plan, per_class: Sequence[int]) -> int:
    """How many covers the plan makes. Raises ConfigError when there are not images enough."""
    poisoned = count(plan, per_class)
    wanted = round(plan.covers * poisoned)
    if plan.covers > 0 and poisoned and not wanted:
        raise ConfigError(
            f"`covers`={plan.covers:g} for each of {poisoned} poisoned images is less than one"
            " image; give more, or 0 for no covers"
        )
    others = sum(n for label, n in enumerate(per_class) if label not in (plan.target, plan.source))
    if plan.source is None and plan.labels == "all_to_one":
        # Poison and covers come from the same classes here, and never from one image.
        others -= poisoned
    if wanted and wanted > others:
        raise ConfigError(
            f"`covers`={plan.covers:g} for each of {poisoned} poisoned images asks for {wanted},"
            f" but only {max(others, 0)} images outside the target and source class are left"
        )
    return wanted


def eligible_count(plan: Plan, per_class: Sequence[int]) -> int:
    """How many training images may be poisoned."""
    if plan.eligible == "source" and plan.source is not None:
        return per_class[plan.source]
    if plan.eligible == "target":
        return per_class[plan.target]
    return sum(per_class) - (per_class[plan.target] if plan.eligible == "not_target" else 0)


def eligible(plan: Plan, labels: Tensor) -> Tensor:
    """Which training images may be poisoned: bool (n,) for `labels` int64 (n,)."""
    if plan.eligible == "source" and plan.source is not None:
        return labels.eq(plan.source)
    if plan.eligible == "target":
        return labels.eq(plan.target)
    if plan.eligible == "not_target":
        return labels.ne(plan.target)
    return torch.ones_like(labels, dtype=torch.bool)


def asr_test_set(labels: Tensor, plan: Plan) -> Tensor:
    """Positions int64 of the test images on which the attack success rate is measured."""
    if plan.asr_on == "all":
        return torch.arange(len(labels))
    if plan.asr_on == "source" and plan.source is not None:
        return labels.eq(plan.source).nonzero().flatten()
    return labels.ne(plan.target).nonzero().flatten()


def elsewhere_test_set(labels: Tensor, plan: Plan) -> Tensor:
    """Positions int64 of the test images of neither target nor source, where an attack on one
    source class should not work; empty when it has none."""
    if plan.source is None:
        return torch.zeros(0, dtype=torch.int64)
    return (labels.ne(plan.target) & labels.ne(plan.source)).nonzero().flatten()


def _counted_against(plan: Plan, per_class: Sequence[int]) -> int:
    if plan.ratio_of == "count":
        return 1
    if plan.ratio_of == "all" or plan.labels == "all_to_all":
        return sum(per_class)
    of_source = plan.ratio_of == "source" and plan.source is not None
    return per_class[plan.source if of_source and plan.source is not None else plan.target]
