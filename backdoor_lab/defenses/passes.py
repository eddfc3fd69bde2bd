"""Trains a network in passes over chosen images, as the authors' code of ABL and D-BR does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from backdoor_lab.core.lazy import F, Tensor, nn, torch
from backdoor_lab.core.progress import track
from backdoor_lab.defenses.context import DefenseContext
from backdoor_lab.numerics.descent import descend

Loss: TypeAlias = "Callable[[Tensor, Tensor], Tensor]"


@dataclass(frozen=True)
class PassSettings:
    """SGD settings that are fixed by a method's authors and used in place of the recipe's."""

    batch_size: int
    momentum: float
    weight_decay: float
    nesterov: bool = False


class Passes:
    """Trains `network` in place by SGD, one pass over training images at a time.

    One optimizer serves all passes: momentum carries over to passes with another learning rate,
    loss or set of images. Batch normalization uses batch statistics and updates its running
    statistics.
    """

    def __init__(self, network: nn.Module, context: DefenseContext, settings: PassSettings) -> None:
        self.network, self.context, self.settings = network, context, settings
        self.sgd = torch.optim.SGD(
            network.parameters(),
            lr=0.0,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            nesterov=settings.nesterov,
        )

    def over(
        self, where: Tensor, lr: float, loss: Loss, augment: torch.Generator | None = None
    ) -> None:
        """Minimizes `loss(logits, labels)` in one pass over the training images at indices `where`,
        in the order of `where`. If a generator `augment` is given, the images are augmented as in
        the training of the attacked model. Leaves the network in eval mode. Raises DivergedError if
        a loss is not finite."""
        for group in self.sgd.param_groups:
            group["lr"] = lr
        self.network.train()
        with torch.enable_grad():
            for part in track(batches_of(where, self.settings.batch_size), "batch"):
                labels = self.context.labels[part].to(self.context.device)
                value = loss(self.network(self.context.images(part, augment)), labels)
                descend(self.sgd, value, "the training loss of the defense")
        self.network.eval()


def batches_of(where: Tensor, size: int) -> list[Tensor]:
    """Splits the indices in `where`, int64 (n,), in order into batches of `size`; the last batch
    may be smaller.

    Batch statistics need two images: a last batch of a single image is merged with the batch before
    it, and if there is only one image, there is no batch.
    """
    if len(where) < 2:
        return []
    parts = list(where.split(size))
    if len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


def in_random_order(where: Tensor, generator: torch.Generator) -> Tensor:
    """Returns the indices in `where`, int64 (n,), in random order."""
    return where[torch.randperm(len(where), generator=generator)]


def opposed(outputs: Tensor, labels: Tensor) -> Tensor:
    """Returns the negative mean cross-entropy: minimizing it unlearns the images."""
    return -F.cross_entropy(outputs, labels)
