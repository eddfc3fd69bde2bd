"""Base class of repairs that find poison in the training set and unlearn it."""

from __future__ import annotations

from collections.abc import Iterator

from backdoor_lab.core import streams
from backdoor_lab.core.lazy import F, Tensor, nn, torch
from backdoor_lab.core.progress import track
from backdoor_lab.defenses.context import DefenseContext
from backdoor_lab.defenses.networks import (
    Batch,
    ModelRepair,
    apart,
    shuffled,
    train,
    training_batches,
)


class Unlearning(ModelRepair):
    """A repair that unlearns poison while it keeps what the model learned from other images."""

    needs_clean = False

    @staticmethod
    def unlearn_with_clean(
        network: nn.Module,
        context: DefenseContext,
        bad: Tensor,
        good: Tensor,
        epochs: int,
        lr: float,
    ) -> None:
        """Minimizes the cross-entropy of `good` and the `unlikelihood` of `bad` by SGD with
        learning rate `lr`: `epochs` passes over the training images at indices `bad`, each batch
        with as many images at indices `good`. Batch normalization keeps its running statistics."""
        size = min(context.hyperparameters.batch_size, len(bad), len(good))
        batches = joint_batches(context, bad, good, size, epochs)
        rates = lr, context.hyperparameters.momentum, context.hyperparameters.weight_decay
        train(network, batches, rates, loss=apart(size), frozen_statistics=True)

    @staticmethod
    def unlearn_in_turn(
        network: nn.Module,
        context: DefenseContext,
        bad: Tensor,
        good: Tensor,
        epochs: int,
        lr: float,
    ) -> None:
        """In each of `epochs` passes, maximizes the cross-entropy of the training images at indices
        `bad`, then minimizes that of the images at indices `good`, by SGD with learning rate `lr`.
        Updates the statistics of batch normalization. Raises DivergedError if a loss is not
        finite."""
        sign = 1.0

        def batches() -> Iterator[Batch]:
            nonlocal sign
            for number in track(range(epochs), "round"):
                for where, sign in ((bad, -1.0), (good, 1.0)):
                    purpose = streams.unlearning_pass(number, sign)
                    yield from training_batches(context, where, 1, purpose)

        def loss(outputs: Tensor, labels: Tensor) -> Tensor:
            return sign * F.cross_entropy(outputs, labels)

        rates = lr, context.hyperparameters.momentum, context.hyperparameters.weight_decay
        train(network, batches(), rates, loss=loss)


def joint_batches(
    context: DefenseContext, bad: Tensor, good: Tensor, size: int, epochs: int
) -> Iterator[Batch]:
    """Yields batches of `size` training images at indices `bad`, followed by as many at indices
    `good`, all drawn at random."""
    generator = context.generator(streams.UNLEARNING)
    augment = context.generator(streams.UNLEARNING_AUGMENTATION, device=context.device)
    for _ in track(range(epochs), "epoch"):
        for part in shuffled(len(bad), size, generator):
            others = torch.randint(len(good), (size,), generator=generator)
            where = torch.cat([bad[part], good[others]])
            yield context.images(where, augment), context.labels[where].to(context.device)
