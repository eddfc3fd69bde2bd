"""Repairs that find some of the poison in the training set and make a network forget it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from backdoor_lab.defenses.material import Material
from backdoor_lab.defenses.networks import Batch, Repair, apart, shuffled, train


class Unlearning(Repair):
    """What such repairs share: the step away from poison and towards the rest."""

    needs_clean = False

    @staticmethod
    def unlearn(
        network: nn.Module, material: Material, bad: Tensor, good: Tensor, epochs: int, lr: float
    ) -> None:
        """Descends the cross-entropy of `good` and the `unlikelihood` of `bad` by SGD with rate
        `lr`: `epochs` passes over the training images at positions `bad`, each batch beside as
        many of `good`. The statistics of batch normalisation stay as they are."""
        size = min(material.practice.batch, len(bad), len(good))
        batches = beside(material, bad, good, size, epochs)
        rates = lr, material.practice.momentum, material.practice.weight_decay
        train(network, batches, rates, loss=apart(size), frozen_statistics=True)


def beside(
    material: Material, bad: Tensor, good: Tensor, size: int, epochs: int
) -> Iterator[Batch]:
    """Batches of `size` training images of `bad`, then as many of `good`, drawn at random."""
    generator = material.generator("unlearning")
    augment = material.generator("unlearning augmentation", device=material.device)
    for _ in range(epochs):
        for part in shuffled(len(bad), size, generator):
            others = torch.randint(len(good), (size,), generator=generator)
            where = torch.cat([bad[part], good[others]])
            yield material.images(where, augment), material.labels[where].to(material.device)
