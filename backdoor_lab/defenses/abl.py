"""ABL, isolation stage: poisoned images are learned earlier than clean ones."""

from __future__ import annotations

from collections.abc import Callable

from backdoor_lab.core import streams, validation
from backdoor_lab.core.lazy import F, Tensor, nn, torch
from backdoor_lab.defenses.context import DefenseContext
from backdoor_lab.defenses.networks import (
    ModelBasedFilter,
    SampleScores,
    as_trained,
    losses_at,
    train,
    training_batches,
)
from backdoor_lab.defenses.options import DEFAULTS, FilterOptions

SHARE_OF_EPOCHS = 0.2


class ABL(ModelBasedFilter):
    """Removes the images with the lowest loss after a few epochs of local gradient ascent.

    Li, Lyu, Koren, Lyu, Li, Ma, "Anti-Backdoor Learning: Training Clean Models on Poisoned Data",
    NeurIPS 2021, section 3.2, equation 3. A separate model is trained on the poisoned set with the
    loss sign(L - `gamma`) · L, where L is the mean cross-entropy of a batch. It keeps the loss of
    most images near gamma, while the loss of poisoned images falls below. Score: -L of the image,
    in eval mode and without augmentation. ``removal_budget=auto`` removes the fraction
    `isolation_ratio` of all images with the lowest loss.

    `epochs` is the length of this training; by default a fifth of the recipe's, like the paper's
    20 of 100. The learning rate is the recipe's.
    """

    def __init__(
        self,
        options: FilterOptions = DEFAULTS,
        *,
        gamma: float = 0.5,
        epochs: int | None = None,
        isolation_ratio: float = 0.01,
    ) -> None:
        super().__init__(options)
        self.gamma = validation.number("defense.gamma", gamma, low=0)
        self.epochs = None if epochs is None else validation.whole("defense.epochs", epochs, low=1)
        self.isolation_ratio = validation.number(
            "defense.isolation_ratio", isolation_ratio, low=0, below=1
        )

    def score_images(self, context: DefenseContext, where: Tensor) -> SampleScores:
        network = ascended(context, self.gamma, self.passes(context))
        losses = losses_at(network, context, torch.arange(len(context.labels)))
        chosen = torch.zeros(len(losses), dtype=torch.bool)
        chosen[lowest(losses, self.isolation_ratio)] = True
        return SampleScores(-losses[where], chosen[where])

    def passes(self, context: DefenseContext) -> int:
        """Number of epochs of the isolation training."""
        return self.epochs or max(1, round(SHARE_OF_EPOCHS * context.hyperparameters.epochs))


def ascended(context: DefenseContext, gamma: float, epochs: int) -> nn.Module:
    """A model trained on the whole set with local gradient ascent."""
    everything = torch.arange(len(context.labels))
    batches = training_batches(context, everything, epochs, streams.ISOLATION)
    return train(context.fresh(0), batches, as_trained(context), loss=ascent(gamma))


def ascent(gamma: float) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss sign(L - gamma) · L for logits and labels, where L is their mean cross-entropy."""

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        mean = F.cross_entropy(outputs, labels)
        return (mean.detach() - gamma).sign() * mean

    return loss


def lowest(losses: Tensor, share: float) -> Tensor:
    """Indices of the lowest fraction `share` of `losses` (n,), at least one."""
    count = max(1, round(share * len(losses)))
    return losses.sort(stable=True).indices[:count]
