"""Repairs that find some of the poison in the training set and make a network forget it."""

from __future__ import annotations

from collections.abc import Iterator

from backdoor_lab.core import streams
from backdoor_lab.core.lazy import F, Tensor, nn, torch
from backdoor_lab.core.progress import track
from backdoor_lab.defenses.material import Material
from backdoor_lab.defenses.networks import Batch, Repair, apart, shuffled, train, training_batches


class Unlearning(Repair):
    """What such repairs share: the step away from poison and towards the rest."""

    needs_clean = False

    @staticmethod
    def unlearn_beside(
        network: nn.Module, material: Material, bad: Tensor, good: Tensor, epochs: int, lr: float
    ) -> None:
        """Descends the cross-entropy of `good` and the `unlikelihood` of `bad` by SGD with rate
        `lr`: `epochs` passes over the training images at positions `bad`, each batch beside as
        many of `good`. The statistics of batch normalisation stay as they are."""
        size = min(material.practice.batch, len(bad), len(good))
        batches = beside(material, bad, good, size, epochs)
        rates = lr, material.practice.momentum, material.practice.weight_decay
        train(network, batches, rates, loss=apart(size), frozen_statistics=True)

    @staticmethod
    def unlearn_in_turn(
        network: nn.Module, material: Material, bad: Tensor, good: Tensor, epochs: int, lr: float
    ) -> None:
        """In each of `epochs` passes ascends the cross-entropy of the training images at
        positions `bad`, then descends that of `good`, by SGD with rate `lr`. The statistics of
        batch normalisation follow. Raises Diverged when a loss is not finite."""
        sign = 1.0

        def batches() -> Iterator[Batch]:
            nonlocal sign
            for number in track(range(epochs), "round"):
                for where, sign in ((bad, -1.0), (good, 1.0)):
                    purpose = streams.unlearning_pass(number, sign)
                    yield from training_batches(material, where, 1, purpose)

        def loss(said: Tensor, labels: Tensor) -> Tensor:
            return sign * F.cross_entropy(said, labels)

        rates = lr, material.practice.momentum, material.practice.weight_decay
        train(network, batches(), rates, loss=loss)


def beside(
    material: Material, bad: Tensor, good: Tensor, size: int, epochs: int
) -> Iterator[Batch]:
    """Batches of `size` training images of `bad`, then as many of `good`, drawn at random."""
    generator = material.generator(streams.UNLEARNING)
    augment = material.generator(streams.UNLEARNING_AUGMENTATION, device=material.device)
    for _ in track(range(epochs), "epoch"):
        for part in shuffled(len(bad), size, generator):
            others = torch.randint(len(good), (size,), generator=generator)
            where = torch.cat([bad[part], good[others]])
            yield material.images(where, augment), material.labels[where].to(material.device)
