"""Confusion training: a model still fits poison when it is also trained on wrong labels."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from backdoor_lab.core import streams, validation
from backdoor_lab.core.errors import ConfigError, many
from backdoor_lab.core.lazy import F, Tensor, nn, torch
from backdoor_lab.core.progress import track
from backdoor_lab.defenses.context import DefenseContext
from backdoor_lab.defenses.likelihood_ratio import suspects
from backdoor_lab.defenses.networks import (
    Batch,
    ModelBasedFilter,
    SampleScores,
    clean_of,
    features,
    logits,
    logits_at,
    train,
)
from backdoor_lab.defenses.options import DEFAULTS, FilterOptions
from backdoor_lab.numerics.descent import descend
from backdoor_lab.returned import finite

MOMENTUM = 0.7
DECAY = 1e-4
PRETRAINING = (0.01, 0.9, DECAY)
"""Learning rate, momentum and weight decay of pretraining."""
BATCH_FACTOR = 2
"""One of every BATCH_FACTOR steps of confusion training includes training images."""
FLOOR = 50
"""After each round at least one in FLOOR images of every class is kept."""
LAST_FLOOR = 100
"""Replaces FLOOR after the second-to-last round."""
RARE = 1e-3
"""Added to the frequency of each class; the loss of the class is divided by the square root of the
sum."""


@dataclass(frozen=True)
class Round:
    """One round: `epochs` epochs of pretraining, then `steps` steps of confusion training with the
    learning rate `lr`. `share` is the fraction of the training set that is kept for the next
    round, or None in the last round. `weight`: see `confuse`."""

    share: float | None
    steps: int
    weight: float
    lr: float
    epochs: int


class ConfusionTraining(ModelBasedFilter):
    """Removes images that a model still fits after training on mislabeled clean images.

    Qi, Xie, Wang, Wu, Mahloujifar, Mittal, "Towards A Proactive ML Approach for Detecting Backdoor
    Poison Samples", USENIX Security 2023, as in section 4 and the authors' code. Each round trains
    a base model on a part of the set, then a copy of the model on batches of that part together
    with held-out clean images that have wrong labels (see `confuse`). The wrong labels break the
    association of images with classes, but not the association of a trigger with its target,
    because no clean image shows the trigger. The images with the lowest loss form the part for the
    next round: a fraction of the set, given by `shares`, but at least 1/50 of each class (1/100 for
    the last round). `steps`, `weight`, `lr` and `pretrain_epochs` are one value for all rounds or a
    list with one value per round; there is one more round than `shares` has entries.

    The score is the log-probability of the label minus that of the likeliest other class, so that
    images that the last model fits have the highest scores. ``removal_budget=auto`` removes the
    fitted images of suspicious classes (see `suspects`), at most half of a class.

    The first round starts from a new model or, if it has no pretraining, from a copy of the
    attacked model. By default, the first round has no pretraining, and there are fewer steps
    and epochs than in the authors' code. `defense=confusion_authors` uses the authors' values and
    needs a GPU.
    """

    needs_clean = True

    def __init__(
        self,
        options: FilterOptions = DEFAULTS,
        *,
        shares: Sequence[float] = (0.5, 0.2, 0.04, 0.02, 0.01),
        steps: Sequence[int] | int = (300, 300, 300, 300, 100, 100),
        weight: Sequence[float] | float = (20, 20, 20, 30, 30, 15),
        lr: Sequence[float] | float = (0.001, 0.001, 0.001, 0.01, 0.01, 0.01),
        pretrain_epochs: Sequence[int] | int = (0, 1, 1, 1, 1, 1),
        batch_size: int = 32,
    ) -> None:
        super().__init__(options)
        if not isinstance(shares, (list, tuple)) or not shares:
            raise ConfigError(f"`defense.shares` must be a list such as [0.5, 0.2], got {shares!r}")
        kept = [
            validation.number("defense.shares", each, low=1e-9, below=1 + 1e-9) for each in shares
        ]
        n = len(kept) + 1
        values = zip(
            [*kept, None],
            [validation.whole("defense.steps", each, low=1) for each in _each("steps", steps, n)],
            [validation.number("defense.weight", x, low=1) for x in _each("weight", weight, n)],
            [validation.number("defense.lr", each, low=0) for each in _each("lr", lr, n)],
            [
                validation.whole("defense.pretrain_epochs", each)
                for each in _each("pretrain_epochs", pretrain_epochs, n)
            ],
            strict=True,
        )
        self.rounds = [Round(*each) for each in values]
        self.batch_size = validation.whole("defense.batch_size", batch_size, low=2)

    def score_images(self, context: DefenseContext, where: Tensor) -> SampleScores:
        everything = torch.arange(len(context.labels))
        predicted = _predicted(context)
        base, among = self._first(context), everything
        for number, each in enumerate(track(self.rounds, "round")):
            self._pretrain(base, context, among, number)
            network = copy.deepcopy(base)
            inspected = self._inspected(context, among, number)
            clean = self._clean(context, predicted, number)
            weights = None if each.share is None else class_weights(context, among)
            confuse(network, each, clean, inspected, len(context.classes), weights)
            outputs = logits_at(network, context, everything).double()
            losses = F.cross_entropy(outputs, context.labels, reduction="none")
            finite(losses, "losses")
            if each.share is not None:
                floor = LAST_FLOOR if number == len(self.rounds) - 2 else FLOOR
                among = distilled(losses, context.labels, each.share, floor)
        fitted = outputs.argmax(dim=1) == context.labels
        values = features(
            network, lambda a, b: context.images(everything[a:b], None), len(everything)
        )
        flagged = fitted & torch.isin(context.labels, suspects(values, fitted, context.labels))
        return SampleScores(margin(outputs, context.labels)[where], flagged[where])

    def _first(self, context: DefenseContext) -> nn.Module:
        return context.fresh(0) if self.rounds[0].epochs else context.network()

    def _pretrain(
        self, base: nn.Module, context: DefenseContext, among: Tensor, number: int
    ) -> None:
        """Trains `base` in place on the training images whose indices are in `among`. In the last
        round, also trains on the clean images, each labeled with the class after its true class."""
        last = self.rounds[number].share is None
        clean = clean_of(context)
        n, classes = len(among), len(context.classes)
        generator = context.generator(streams.CONFUSION, streams.TRAIN, number)

        def batches() -> Iterator[Batch]:
            for _ in track(range(self.rounds[number].epochs), "epoch"):
                for part in parts(n + last * len(clean), self.batch_size, generator):
                    ours, theirs = among[part[part < n]], part[part >= n] - n
                    images = [context.images(ours, None)] if len(ours) else []
                    images += [clean.images[theirs].to(context.device)] if len(theirs) else []
                    wrong = (clean.labels[theirs] + 1) % classes
                    labels = torch.cat([context.labels[ours], wrong])
                    yield torch.cat(images), labels.to(context.device)

        train(base, batches(), PRETRAINING)

    def _inspected(self, context: DefenseContext, among: Tensor, number: int) -> Iterator[Batch]:
        generator = context.generator(streams.CONFUSION, number)
        while True:
            for part in parts(len(among), self.batch_size, generator):
                at = among[part]
                yield context.images(at, None), context.labels[at].to(context.device)

    def _clean(self, context: DefenseContext, predicted: Tensor, number: int) -> Iterator[Batch]:
        clean = clean_of(context)
        generator = context.generator(streams.CONFUSION, streams.ORDER, number)
        while True:
            for part in parts(len(clean), self.batch_size, generator):
                yield clean.images[part].to(context.device), predicted[part].to(context.device)


def _each(name: str, given: Any, rounds: int) -> list[Any]:
    """Returns one value per round. Raises ConfigError for a list of the wrong length."""
    values = list(given) if isinstance(given, (list, tuple)) else [given] * rounds
    if len(values) != rounds:
        raise ConfigError(
            f"`defense.{name}` must be one value or a list of {many(rounds, 'value')}, one per"
            f" round (there is one more round than `defense.shares` has entries); got {given!r}"
        )
    return values


def _predicted(context: DefenseContext) -> Tensor:
    """Returns the classes that the attacked model predicts for the clean images, int64 (n,)."""
    clean = clean_of(context)
    outputs = logits(
        context.network(), lambda a, b: clean.images[a:b].to(context.device), len(clean)
    )
    return outputs.argmax(dim=1)


def parts(n: int, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yields the indices 0..n-1 in random order, in int64 batches of size `batch`; the last batch
    may be smaller. If only one index is left for the last batch, this index is repeated, since
    batch normalization may reject a batch of one image."""
    for part in torch.randperm(n, generator=generator).split(batch):
        yield part.repeat(2) if len(part) == 1 else part


def confuse(
    network: nn.Module,
    round_: Round,
    clean: Iterator[Batch],
    inspected: Iterator[Batch],
    classes: int,
    weights: Tensor | None,
) -> None:
    """Trains `network` in place by SGD on batches of `clean` with wrong labels and, in every second
    step, also on batches of `inspected`.

    The labels of `clean` are predicted classes. To make them wrong, the labels are shifted by 1 in
    the first step, by 2 in the second, and so on, never by a multiple of `classes`. A step with
    both kinds of images minimizes (L_inspected + (w - 1) · L_clean) / w, where w is
    ``round_.weight`` and L_inspected is a mean in which `weights` (classes,) gives the weight of
    each label. The other steps minimize L_clean.
    """
    sgd = torch.optim.SGD(network.parameters(), lr=round_.lr, momentum=MOMENTUM, weight_decay=DECAY)
    network.train()
    with torch.enable_grad():
        for step in track(range(round_.steps), "batch"):
            images, predicted = next(clean)
            wrong = (predicted + 1 + step % (classes - 1)) % classes
            if step % BATCH_FACTOR == 0:
                shown, labels = next(inspected)
                outputs = network(torch.cat([images, shown]))
                first, rest = outputs[: len(images)], outputs[len(images) :]
                by = None if weights is None else weights.to(rest)
                ours = F.cross_entropy(rest, labels, weight=by)
                loss = (ours + (round_.weight - 1) * F.cross_entropy(first, wrong)) / round_.weight
            else:
                loss = F.cross_entropy(network(images), wrong)
            descend(sgd, loss, "the loss of confusion training")
    network.eval()


def class_weights(context: DefenseContext, among: Tensor) -> Tensor:
    """Returns 1 / sqrt(frequency + 0.001) of each class among the images at indices `among`,
    float64 (classes,)."""
    counts = torch.bincount(context.labels[among], minlength=len(context.classes))
    return (counts.double() / len(among) + RARE).rsqrt()


def distilled(losses: Tensor, labels: Tensor, share: float, floor: int) -> Tensor:
    """Returns the indices of the images to keep, in ascending order.

    The images with the lowest `losses` (n,) are kept: the fraction `share` of all images, and the
    fraction 1 / `floor` of each class. At least one image is kept.
    """
    order = losses.sort(stable=True).indices
    kept = torch.zeros(len(losses), dtype=torch.bool)
    kept[order[: max(1, int(share * len(losses)))]] = True
    for label in labels.unique():
        of_class = order[labels[order] == label]
        kept[of_class[: len(of_class) // floor]] = True
    return kept.nonzero().flatten()


def margin(outputs: Tensor, labels: Tensor) -> Tensor:
    """Returns the logit (n,) of each label minus the largest other logit, for `outputs`
    (n, classes)."""
    others = outputs.scatter(1, labels[:, None], -torch.inf).amax(dim=1)
    return outputs.gather(1, labels[:, None])[:, 0] - others
