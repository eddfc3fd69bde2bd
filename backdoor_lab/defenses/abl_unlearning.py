"""ABL, all stages: isolate poison, train on the rest, unlearn the poison."""

from __future__ import annotations

from backdoor_lab.core import streams, validation
from backdoor_lab.core.lazy import nn, torch
from backdoor_lab.defenses.abl import ABL, ascended, lowest
from backdoor_lab.defenses.context import DefenseContext
from backdoor_lab.defenses.networks import as_trained, losses_at, train, training_batches
from backdoor_lab.defenses.unlearning import Unlearning


class ABLUnlearning(Unlearning):
    """Trains a model on the poisoned set by anti-backdoor learning.

    Li, Lyu, Koren, Lyu, Li, Ma, "Anti-Backdoor Learning: Training Clean Models on Poisoned Data",
    NeurIPS 2021, section 3, equations 3 and 4. First, as in `abl`, a model is trained for `epochs`
    with local gradient ascent, and the fraction `isolation_ratio` of all images with the lowest
    loss is isolated. The model is then trained on the other images for `training_epochs` (by
    default the rest of the recipe's epochs), and finally for `unlearning_epochs` passes over the
    isolated images it unlearns these while it trains on others, with learning rate `unlearning_lr`.
    The attacked model is not used.

    Differences from the paper: the middle stage uses a constant tenth of the recipe's learning
    rate, and unlearning minimizes `unlikelihood` instead of maximizing the unbounded cross-entropy.
    """

    def __init__(
        self,
        *,
        gamma: float = 0.5,
        epochs: int | None = None,
        isolation_ratio: float = 0.01,
        training_epochs: int | None = None,
        unlearning_epochs: int = 5,
        unlearning_lr: float = 0.0005,
    ) -> None:
        self.isolation = ABL(gamma=gamma, epochs=epochs, isolation_ratio=isolation_ratio)
        self.training_epochs = (
            None
            if training_epochs is None
            else validation.whole("defense.training_epochs", training_epochs)
        )
        self.unlearning_epochs = validation.whole("defense.unlearning_epochs", unlearning_epochs)
        self.unlearning_lr = validation.number("defense.unlearning_lr", unlearning_lr, low=0)

    def repair(self, context: DefenseContext) -> tuple[nn.Module, dict[str, object]]:
        first = self.isolation.passes(context)
        network = ascended(context, self.isolation.gamma, first)
        losses = losses_at(network, context, torch.arange(len(context.labels)))
        bad = lowest(losses, self.isolation.isolation_ratio)
        left = torch.ones(len(losses), dtype=torch.bool)
        left[bad] = False
        good = left.nonzero().flatten()
        then = self.training_epochs
        then = max(1, context.hyperparameters.epochs - first) if then is None else then
        lr, momentum, decay = as_trained(context)
        batches = training_batches(context, good, then, streams.TRAINING_ON)
        train(network, batches, (lr / 10, momentum, decay))
        epochs, lr = self.unlearning_epochs, self.unlearning_lr
        self.unlearn_with_clean(network, context, bad, good, epochs, lr)
        return network, {"isolated": len(bad), "of": len(losses), "epochs": [first, then]}
