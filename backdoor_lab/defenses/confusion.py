"""Confusion training: poison is still fitted when training includes wrong labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from backdoor_lab.core import streams, validation
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.lazy import F, Tensor, torch
from backdoor_lab.core.progress import track
from backdoor_lab.defenses.context import DefenseContext
from backdoor_lab.defenses.networks import (
    Batch,
    ModelBasedFilter,
    SampleScores,
    clean_of,
    logits_at,
    train,
)
from backdoor_lab.defenses.options import DEFAULTS, FilterOptions


class ConfusionTraining(ModelBasedFilter):
    """Removes images that a model still fits after training on randomly mislabeled clean images.

    Qi, Xie, Wang, Wu, Mahloujifar, Mittal, "Towards A Proactive ML Approach for Detecting Backdoor
    Poison Samples", USENIX Security 2023, section 4. A copy of the attacked model is trained on
    batches of the poisoned set together with held-out clean images whose labels are random and
    wrong, redrawn each time: loss (L_set + (`weight` - 1) · L_wrong) / `weight`. This destroys the
    link between images and classes but not between a trigger and its target, which no wrong label
    contradicts. There is one round of `steps` steps for each of `shares`; after it, only that
    fraction of the set with the lowest loss is used for training. Score: -L of the image.
    ``removal_budget=auto`` removes the images of a class that are still classified as labeled.

    Simplified: before each round the paper pretrains a model on that round's share; at the end
    it clusters the fitted images of each class. The authors' code takes 47 times as many steps.
    """

    needs_clean = True

    def __init__(
        self,
        options: FilterOptions = DEFAULTS,
        *,
        shares: Sequence[float] = (0.5, 0.2, 0.05),
        steps: int = 200,
        weight: float = 20.0,
        lr: float = 0.01,
    ) -> None:
        super().__init__(options)
        if not isinstance(shares, (list, tuple)) or not shares:
            raise ConfigError(f"`defense.shares` must be a list, as [0.5, 0.2], got {shares!r}")
        self.shares = [
            validation.number("defense.shares", each, low=1e-9, below=1 + 1e-9) for each in shares
        ]
        self.steps = validation.whole("defense.steps", steps, low=1)
        self.weight = validation.number("defense.weight", weight, low=1)
        self.lr = validation.number("defense.lr", lr, low=0)

    def score_images(self, context: DefenseContext, where: Tensor) -> SampleScores:
        network = context.network()
        rates = self.lr, context.hyperparameters.momentum, context.hyperparameters.weight_decay
        everything = torch.arange(len(context.labels))
        among = everything
        for number, share in enumerate(track(self.shares, "round")):
            size = min(context.hyperparameters.batch_size, len(among))
            batches = confusing(context, among, size, self.steps, number)
            train(network, batches, rates, loss=weighed(size, self.weight))
            outputs = logits_at(network, context, everything)
            losses = F.cross_entropy(outputs.double(), context.labels, reduction="none")
            kept = max(1, round(share * len(everything)))
            among = losses.sort(stable=True).indices[:kept]
        fitted = outputs.argmax(dim=1) == context.labels
        return SampleScores(-losses[where], fitted[where])


def weighed(size: int, weight: float) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss (L_set + (weight - 1) · L_wrong) / weight; the first `size` rows are the set's."""

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        ours = F.cross_entropy(outputs[:size], labels[:size])
        wrong = F.cross_entropy(outputs[size:], labels[size:])
        return (ours + (weight - 1) * wrong) / weight

    return loss


def confusing(
    context: DefenseContext, among: Tensor, size: int, steps: int, number: int
) -> Iterator[Batch]:
    """Yields batches: `size` training images drawn from the indices `among`, followed in the same
    batch by mislabeled clean images."""
    clean, classes = clean_of(context), len(context.classes)
    generator = context.generator(streams.CONFUSION, number)
    augment = context.generator(streams.CONFUSION_AUGMENTATION, number, device=context.device)
    for _ in track(range(steps), "batch"):
        at = among[torch.randint(len(among), (size,), generator=generator)]
        chosen = torch.randint(
            len(clean), (context.hyperparameters.batch_size,), generator=generator
        )
        wrong = wrong_labels(clean.labels[chosen], classes, generator)
        images = clean.images[chosen].to(context.device)
        images = torch.cat([context.images(at, augment), context.augment(images, augment)])
        yield images, torch.cat([context.labels[at], wrong]).to(context.device)


def wrong_labels(labels: Tensor, classes: int, generator: torch.Generator) -> Tensor:
    """A uniformly drawn different label for each of `labels` int64 (n,)."""
    step = torch.randint(1, classes, (len(labels),), generator=generator)
    return (labels + step) % classes
