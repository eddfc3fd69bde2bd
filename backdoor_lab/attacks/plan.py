"""The specification of an attack, with an explicit value for every choice that differs between
papers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from backdoor_lab.core import validation
from backdoor_lab.core.errors import ConfigError, many
from backdoor_lab.core.lazy import Tensor, torch

LABEL_MODES = ("all_to_one", "all_to_all", "clean")
RATIO_OF = ("target", "all", "source", "count")
PLACEMENTS = ("append", "replace")
POISON_FROM = ("not_target", "all", "source", "target")
ASR_ON = ("not_target", "source", "all")
APPLY_TRIGGER = ("before_augmentation", "after_augmentation")


class SameClassError(ConfigError):
    """Raised if source and target are the same class; a sweep skips such cells."""


@dataclass(frozen=True)
class PoisonSpec:
    """Which images are poisoned, how many, with which labels, and how success is measured.

    `target` and `source` are class numbers. `ratio` is a number of images, or a fraction of the
    target class, the source class or the whole training set, as `ratio_of` says. A poisoned image
    is appended or replaces its original (`placement`). `poison_from` says which classes originals
    are drawn from: all but the target, all, the source class or the target class.

    `label_mode`: ``all_to_one`` labels poison as the target; ``all_to_all`` labels each poisoned
    image as the class after its own, and then treats `ratio_of` ``target`` like ``all``; ``clean``
    poisons only target-class images and keeps their labels. `cover_rate` is the number of cover
    images per poisoned image. Cover images show the trigger, keep their labels, and come from
    neither the target nor the source class. `cover_from` lists their classes; if empty, these are
    all classes but target and source. Raises ConfigError if the choices are
    invalid or contradict each other.
    """

    target: int
    source: int | None
    ratio: float
    ratio_of: str = "target"
    placement: str = "append"
    poison_from: str = "not_target"
    asr_on: str = "not_target"
    apply_trigger: str = "before_augmentation"
    label_mode: str = "all_to_one"
    cover_rate: float = 0.0
    cover_from: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        validation.choice("protocol.ratio_of", self.ratio_of, RATIO_OF)
        validation.choice("protocol.placement", self.placement, PLACEMENTS)
        validation.choice("protocol.poison_from", self.poison_from, POISON_FROM)
        validation.choice("protocol.asr_on", self.asr_on, ASR_ON)
        validation.choice("protocol.apply_trigger", self.apply_trigger, APPLY_TRIGGER)
        validation.choice("label_mode", self.label_mode, LABEL_MODES)
        validation.number("cover_rate", self.cover_rate, low=0, below=1000)
        check_ratio(self.ratio, self.ratio_of)
        self._check_source()
        self._check_labels()

    def _check_source(self) -> None:
        check_pair(self.source, self.target)
        for key in ("ratio_of", "poison_from", "asr_on"):
            if getattr(self, key) == "source" and self.source is None:
                raise ConfigError(f"`protocol.{key}=source` needs a class in `source`, got null")
        if self.source is not None and self.label_mode == "all_to_all":
            raise ConfigError("`label_mode=all_to_all` attacks every class: remove `source`")
        if self.source is not None and self.poison_from != "source" and self.label_mode != "clean":
            raise ConfigError(
                f"`source` is set, but `protocol.poison_from={self.poison_from}` ignores it;"
                " set protocol.poison_from=source, or source=null"
            )

    def _check_labels(self) -> None:
        if (self.label_mode == "clean") != (self.poison_from == "target"):
            raise ConfigError(
                f"`label_mode={self.label_mode}` and `protocol.poison_from={self.poison_from}`"
                " contradict each other: images of the target class are poisoned"
                " (protocol.poison_from=target) if and only if labels stay clean (label_mode=clean)"
            )
        if self.label_mode == "all_to_all" and (self.poison_from, self.asr_on) != ("all", "all"):
            raise ConfigError(
                "`label_mode=all_to_all` needs protocol.poison_from=all and protocol.asr_on=all,"
                f" got {self.poison_from} and {self.asr_on}"
            )
        if self.cover_rate and self.label_mode == "all_to_all":
            raise ConfigError(
                "`label_mode=all_to_all` attacks every class and leaves none for cover images: set"
                " cover_rate=0"
            )

    def given(self, labels: Tensor, classes: int) -> Tensor:
        """Returns the labels that poisoned images get if their true labels are `labels`; both int64
        (n,)."""
        return labels if self.label_mode == "clean" else self.wanted(labels, classes)

    def wanted(self, labels: Tensor, classes: int) -> Tensor:
        """Returns the labels that the attacker wants predicted for triggered test images whose true
        labels are `labels`; both int64 (n,)."""
        if self.label_mode == "all_to_all":
            return (labels + 1) % classes
        return torch.full_like(labels, self.target)


def check_pair(source: int | None, target: int, classes: Sequence[str] = ()) -> None:
    """Raises SameClassError if source and target are equal. `classes` provides the class name for
    the message."""
    if source == target:
        name = f" ({classes[target]})" if classes else ""
        raise SameClassError(
            f"`source` and `target` must differ, but both are class {target}{name}"
        )


def check_ratio(ratio: Any, ratio_of: object) -> None:
    """Raises ConfigError unless `ratio` is a fraction in 0..1, or a number of images if `ratio_of`
    is ``count``."""
    if ratio_of == "count":
        validation.whole("ratio", ratio, low=0)
    elif validation.is_number(ratio) and ratio > 1:
        raise ConfigError(
            f"`ratio` must satisfy 0 <= ratio <= 1, got {ratio}; to give a number of images, set"
            " protocol.ratio_of=count"
        )
    else:
        validation.share("ratio", ratio)


def implied(label_mode: str, *, on_source: bool) -> dict[str, Any]:
    """Returns the protocol options that `label_mode` implies and, if `on_source` is true, those
    implied by an attack with a source class."""
    if label_mode == "all_to_all":
        return {"poison_from": "all", "asr_on": "all"}
    words = {"poison_from": "source", "asr_on": "source"} if on_source else {}
    if label_mode == "clean":
        # If it were appended, a poisoned image would be a second copy of its original with the same
        # label.
        words |= {"poison_from": "target", "placement": "replace"}
    return words


def count(plan: PoisonSpec, per_class: Sequence[int]) -> int:
    """Returns how many images `plan` poisons if the training set has ``per_class[k]`` images of
    class k.

    Returns 0 for ratio 0. Otherwise raises ConfigError, with the calculation in the message, if the
    number is less than one or exceeds the number of eligible images.

    >>> count(PoisonSpec(target=0, source=None, ratio=0.1), [50, 80])
    5
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
            f"`ratio`={plan.ratio:g} of {against} images (protocol.ratio_of={plan.ratio_of})"
            f" requires {wanted} poisoned images, but only {available} are eligible"
            f" (protocol.poison_from={plan.poison_from}); give a smaller ratio"
        )
    return wanted


def cover_count(plan: PoisonSpec, per_class: Sequence[int]) -> int:
    """Returns how many cover images `plan` makes if the training set has ``per_class[k]`` images of
    class k. Raises ConfigError if the number is less than one or too few images are available."""
    poisoned = count(plan, per_class)
    wanted = round(plan.cover_rate * poisoned)
    if plan.cover_rate > 0 and poisoned and not wanted:
        raise ConfigError(
            f"`cover_rate`={plan.cover_rate:g} with {many(poisoned, 'poisoned image')} gives less"
            " than one cover image in total; give a larger rate, or 0 for no cover images"
        )
    others = sum(per_class[label] for label in cover_classes(plan, len(per_class)))
    if plan.source is None and plan.label_mode == "all_to_one":
        # Poison and cover images come from the same classes but never from the same image.
        others -= poisoned
    if wanted and wanted > others:
        where = "outside the target and source class"
        if plan.cover_from:
            where = f"in the {len(plan.cover_from)} classes that covers come from"
        raise ConfigError(
            f"`cover_rate`={plan.cover_rate:g} with {many(poisoned, 'poisoned image')} requires"
            f" {many(wanted, 'cover image')}, but only {many(max(others, 0), 'image')} {where}"
            " can be used"
        )
    return wanted


def cover_classes(plan: PoisonSpec, classes: int) -> list[int]:
    """Returns the labels of the classes that cover images are drawn from. `classes` is the number
    of classes in the data set."""
    others = [k for k in range(classes) if k not in (plan.target, plan.source)]
    return [k for k in others if k in plan.cover_from] if plan.cover_from else others


def eligible_count(plan: PoisonSpec, per_class: Sequence[int]) -> int:
    """Returns how many images may be poisoned in a training set with ``per_class[k]`` images of
    class k."""
    if plan.poison_from == "source" and plan.source is not None:
        return per_class[plan.source]
    if plan.poison_from == "target":
        return per_class[plan.target]
    return sum(per_class) - (per_class[plan.target] if plan.poison_from == "not_target" else 0)


def eligible(plan: PoisonSpec, labels: Tensor) -> Tensor:
    """Returns a mask of the training images that may be poisoned: bool (n,) for `labels` int64
    (n,)."""
    if plan.poison_from == "source" and plan.source is not None:
        return labels.eq(plan.source)
    if plan.poison_from == "target":
        return labels.eq(plan.target)
    if plan.poison_from == "not_target":
        return labels.ne(plan.target)
    return torch.ones_like(labels, dtype=torch.bool)


def asr_test_set(labels: Tensor, plan: PoisonSpec) -> Tensor:
    """Returns the indices, int64, of the test images on which the attack success rate is
    measured."""
    if plan.asr_on == "all":
        return torch.arange(len(labels))
    if plan.asr_on == "source" and plan.source is not None:
        return labels.eq(plan.source).nonzero().flatten()
    return labels.ne(plan.target).nonzero().flatten()


def elsewhere_test_set(labels: Tensor, plan: PoisonSpec) -> Tensor:
    """Returns the indices, int64, of the test images outside the target and source classes, on
    which a source-specific attack should fail; empty if there is no source class."""
    if plan.source is None:
        return torch.zeros(0, dtype=torch.int64)
    return (labels.ne(plan.target) & labels.ne(plan.source)).nonzero().flatten()


def _counted_against(plan: PoisonSpec, per_class: Sequence[int]) -> int:
    if plan.ratio_of == "count":
        return 1
    if plan.ratio_of == "all" or plan.label_mode == "all_to_all":
        return sum(per_class)
    of_source = plan.ratio_of == "source" and plan.source is not None
    return per_class[plan.source if of_source and plan.source is not None else plan.target]
