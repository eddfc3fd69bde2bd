"""Selects the training images to poison and builds the poisoned training set."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from functools import partial

from backdoor_lab import returned
from backdoor_lab.attacks.base import AttackContext, Trigger
from backdoor_lab.attacks.plan import PoisonSpec, count, cover_classes, cover_count, eligible
from backdoor_lab.core import streams
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.lazy import Tensor, nn, torch
from backdoor_lab.core.rng import torch_generator
from backdoor_lab.core.streams import Stream
from backdoor_lab.core.types import LabeledImages, PoisonResult, TrainingSet
from backdoor_lab.data.workspace import PIECE, Workspace, pieces

TOGETHER = 1 << 24
"""If the poisoned images have more bytes than this, they are triggered in parts."""


def poison(
    train: LabeledImages,
    trigger: Trigger,
    plan: PoisonSpec,
    seed: int,
    context: AttackContext | None = None,
    workspace: Workspace | None = None,
) -> PoisonResult:
    """Poisons a training set. The poisoned rows are an array of `workspace`.

    Images are drawn without replacement from the eligible ones by a generator that depends only on
    `seed`. Therefore all triggers poison the same images, except triggers that choose the images
    themselves. If `plan` applies the trigger after augmentation, the returned set holds unmodified
    images and the trigger, which training applies to each batch. `context` is required only by
    triggers that use more than the selected images. Raises ConfigError if the plan or the trigger
    does not fit the training set.
    """
    context = context or AttackContext(train, plan.target, plan.source, seed, _no_surrogate)
    chosen, covers = select(
        train.labels, plan, seed, len(train.classes), partial(_choice, trigger, context)
    )
    shape = (len(chosen) + len(covers), *train.shape)
    rows = (workspace or Workspace()).tensor(shape, "the poisoned images")
    if plan.apply_trigger == "after_augmentation":
        check_can_be_late(trigger)
        originals = torch.cat([chosen, covers])
        for part in pieces(shape):
            rows[part] = train.images[originals[part]]
    else:
        _fill(rows[: len(chosen)], train, trigger, chosen, context, streams.POISON)
        _fill(rows[len(chosen) :], train, trigger, covers, context, streams.COVERS)
    index, labels = lay_over(train.labels, chosen, covers, plan, len(train.classes))
    late_trigger = trigger if plan.apply_trigger == "after_augmentation" and len(rows) else None
    training = TrainingSet(train.images, rows, index, labels, train.classes, "", late_trigger)
    return of_rows(training, chosen, covers)


def clean(train: LabeledImages) -> TrainingSet:
    """Returns `train` as a TrainingSet without poison."""
    index = torch.arange(len(train))
    nothing = train.images[:0]
    training = TrainingSet(train.images, nothing, index, train.labels, train.classes, "")
    digest = content_digest(training, train.digest)
    return training.keep(torch.ones_like(index, dtype=torch.bool), digest)


def of_rows(training: TrainingSet, chosen: Tensor, covers: Tensor) -> PoisonResult:
    """Returns `training` with its ground truth. ``training.rows`` must hold the poisoned copies of
    the images at indices `chosen`, then the cover copies of the images at indices `covers`."""
    first = len(training.base)
    is_cover = training.index >= first + len(chosen)
    is_poison = (training.index >= first) & ~is_cover
    return PoisonResult(training, is_poison, chosen, is_cover, covers)


def check_can_be_late(trigger: Trigger) -> None:
    """Raises ConfigError if a trigger cannot be applied to batches after augmentation."""
    if trigger.needs_preparing or not trigger.same_everywhere:
        raise ConfigError(
            "`protocol.apply_trigger=after_augmentation` is not possible with"
            f" {type(trigger).__name__}, which does not change all images in the same way; set"
            " protocol.apply_trigger=before_augmentation"
        )


def select(
    labels: Tensor, plan: PoisonSpec, seed: int, classes: int,
    choose: Callable[[Tensor, int], Tensor | None] = lambda candidates, wanted: None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Returns the sorted indices of the images to poison and of those to turn into cover images;
    both int64. `labels`, int64 (n,), are those of the clean training set, which has `classes`
    classes. The images to poison are drawn at random unless `choose` selects them."""
    sizes: list[int] = torch.bincount(labels, minlength=classes).tolist()
    mask, poisoned = eligible(plan, labels), count(plan, sizes)
    found = choose(mask.nonzero().flatten(), poisoned) if poisoned else None
    chosen = _draw(mask, poisoned, seed, streams.POISON) if found is None else found
    wanted = cover_count(plan, sizes)
    if not wanted:
        return chosen, chosen[:0]
    others = torch.isin(labels, torch.tensor(cover_classes(plan, classes), dtype=labels.dtype))
    others[chosen] = False
    return chosen, _draw(others, wanted, seed, streams.COVERS)


def lay_over(
    true: Tensor, chosen: Tensor, covers: Tensor, plan: PoisonSpec, classes: int
) -> tuple[Tensor, Tensor]:
    """Returns the `index` and the `labels` of a poisoned TrainingSet; both int64 (n,).

    `true`, int64 (N,), are the labels of the clean training set, which has `classes` classes;
    `chosen` and `covers` are the indices of the images that are poisoned and turned into cover
    images.
    """
    originals = torch.cat([chosen, covers])
    rows = len(true) + torch.arange(len(originals))
    given = plan.given(true[chosen], classes)
    given = torch.cat([given, true[covers]])
    if plan.placement == "append":
        return torch.cat([torch.arange(len(true)), rows]), torch.cat([true, given])
    index, labels = torch.arange(len(true)), true.clone()
    index[originals], labels[originals] = rows, given
    return index, labels


def classes_after(labels: Tensor, plan: PoisonSpec, *, classes: int, seed: int) -> list[int]:
    """Returns the number of training examples of each label in the result of the function `poison`
    for the same `seed`. `labels`, int64 (n,), are those of the clean training set."""
    chosen, covers = select(labels, plan, seed, classes)
    given = torch.cat([plan.given(labels[chosen], classes), labels[covers]])
    after = torch.bincount(labels, minlength=classes) + torch.bincount(given, minlength=classes)
    if plan.placement == "replace":
        after -= torch.bincount(labels[torch.cat([chosen, covers])], minlength=classes)
    found: list[int] = after.tolist()
    return found


def changes_nothing(train: LabeledImages, trigger: Trigger, plan: PoisonSpec, *, seed: int) -> bool:
    """Whether the trigger changes none of the images to be poisoned (at ratio 0: none of the
    training images). Triggers that need preparation or a surrogate are not tested: returns False
    for them."""
    if trigger.needs_preparing or trigger.uses_surrogate:
        return False
    chosen, _ = select(train.labels, plan, seed, len(train.classes))
    context = AttackContext(train, plan.target, plan.source, seed, _no_surrogate)
    at_test_time = plan.apply_trigger == "after_augmentation" or not len(chosen)
    together = max(1, min(64, PIECE // math.prod(train.shape)))
    for where in (chosen if len(chosen) else torch.arange(len(train))).split(together):
        clean, labels = train.images[where], train.labels[where]
        made = trigger(clean) if at_test_time else trigger.poisoned(clean, labels, context)
        if not torch.equal(made, clean):
            return False
    return True


def check_changes(made: PoisonResult, name: str) -> None:
    """Raises the error `no_change` if all poisoned images, if there are any, equal their
    originals."""
    rows, where = made.training.rows, made.source_index
    parts = pieces((len(where), *rows.shape[1:]))
    if len(where) and all(torch.equal(rows[p], made.training.base[where[p]]) for p in parts):
        raise no_change(name)


def no_change(name: str) -> ConfigError:
    """Returns the error to raise if the trigger called `name` changes no image."""
    return ConfigError(
        f"`trigger={name}` changes no pixel of any image to be poisoned, so there is no backdoor to"
        " learn. Possible causes: an image file that is fully transparent, a color that the images"
        " already have, or a strength that is too small"
    )


def content_digest(training: TrainingSet, base_digest: str, late_trigger: str = "") -> str:
    """Returns a hash of what a model sees; equal images, labels and order give equal hashes.

    `late_trigger` is the name of a trigger that is applied after augmentation.
    """
    laid_over = training.index >= len(training.base)
    used = training.index[laid_over] - len(training.base)
    where = torch.where(laid_over, torch.full_like(training.index, -1), training.index)
    text = hashlib.sha256(f"{base_digest}/{late_trigger if len(used) else ''}".encode())
    for values in (where, training.labels):
        text.update(str(tuple(values.shape)).encode())
        text.update(values.contiguous().numpy().tobytes())
    shape = (len(used), *training.rows.shape[1:])
    text.update(str(shape).encode())
    for part in pieces(shape):
        text.update(training.rows[used[part]].numpy().tobytes())
    return text.hexdigest()


def _fill(
    rows: Tensor, train: LabeledImages, trigger: Trigger, where: Tensor, context: AttackContext,
    what: Stream,
) -> None:  # fmt: skip
    """Writes the poisoned images (`what` is ``streams.POISON``) or the cover images made from the
    images at `where` to `rows`. Many images are triggered in parts, where the trigger allows it."""
    make = trigger.poisoned if what == streams.POISON else trigger.make_covers
    draws = trigger.drawn(rows.shape, context, what) if rows.nbytes > TOGETHER else None
    in_parts = trigger.per_image or trigger.same_everywhere
    if rows.nbytes <= TOGETHER or (draws is None and not in_parts):
        rows[:] = make(train.images[where], train.labels[where], context)
        return
    for part in pieces(tuple(rows.shape)):
        images, labels = train.images[where[part]], train.labels[where[part]]
        if draws is None:
            rows[part] = make(images, labels, context)
        else:
            made = trigger.apply_drawn(images.clone(), draws[part])
            rows[part] = returned.images(trigger, "apply_drawn", made, images)


def _choice(
    trigger: Trigger, context: AttackContext, candidates: Tensor, wanted: int
) -> Tensor | None:
    found = trigger.choose(candidates, wanted, context)
    return returned.chosen(trigger, found, candidates, wanted)


def _draw(mask: Tensor, wanted: int, seed: int, what: Stream) -> Tensor:
    among = mask.nonzero().flatten()
    order = torch.randperm(len(among), generator=torch_generator(seed, what))
    return among[order[:wanted]].sort().values


def _no_surrogate() -> nn.Module:
    raise ConfigError(
        "this trigger needs a surrogate model, which is only trained when a cell runs"
    )
