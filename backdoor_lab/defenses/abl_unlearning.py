"""ABL, all stages: isolate poison, train on the rest, unlearn the poison."""

from __future__ import annotations

from backdoor_lab.core import streams, validation
from backdoor_lab.core.lazy import F, Tensor, nn, torch
from backdoor_lab.core.progress import track
from backdoor_lab.defenses.abl import ABL, SETTINGS, lowest
from backdoor_lab.defenses.context import DefenseContext
from backdoor_lab.defenses.networks import ModelRepair
from backdoor_lab.defenses.passes import Passes, in_random_order, opposed


class ABLUnlearning(ModelRepair):
    """Trains a model on the poisoned set by anti-backdoor learning.

    Li, Lyu, Koren, Lyu, Li, Ma, "Anti-Backdoor Learning: Training Clean Models on Poisoned Data",
    NeurIPS 2021, section 3, as in the authors' code. First, as in `abl`, a model is trained for
    `epochs` with local gradient ascent. The images with the lowest loss, a fraction
    `isolation_ratio` of all images, are isolated. The model is then trained on the other images for
    `training_epochs` (by default the rest of the recipe's epochs), with the recipe's augmentation.
    The learning rate is `lr` for two thirds of these epochs and a tenth of it for the last third.
    Finally, the cross-entropy of the isolated images is maximized for `unlearning_epochs` passes
    with learning rate `unlearning_lr`, without augmentation. Batch size, momentum and weight decay
    are those of `abl` throughout. The attacked model is not used.

    The authors' code has 5 epochs of unlearning, but the first one only evaluates the model. The
    code trains on the other images for 60 epochs after 10 epochs of isolation
    (``defense=abl_unlearning_authors``); the paper trains for 80 epochs after 20. The paper's
    equation 4 minimizes the loss of the other images and maximizes that of the isolated ones at the
    same time; in the code, the minimization ends before the maximization starts.
    """

    needs_clean = False

    def __init__(
        self,
        *,
        gamma: float = 0.5,
        epochs: int | None = None,
        lr: float = 0.1,
        isolation_ratio: float = 0.01,
        training_epochs: int | None = None,
        unlearning_epochs: int = 4,
        unlearning_lr: float = 0.0005,
    ) -> None:
        self.isolation = ABL(gamma=gamma, epochs=epochs, lr=lr, isolation_ratio=isolation_ratio)
        self.training_epochs = (
            None
            if training_epochs is None
            else validation.whole("defense.training_epochs", training_epochs)
        )
        self.unlearning_epochs = validation.whole("defense.unlearning_epochs", unlearning_epochs)
        self.unlearning_lr = validation.number("defense.unlearning_lr", unlearning_lr, low=0)

    def repair(self, context: DefenseContext) -> tuple[nn.Module, dict[str, object]]:
        network, losses = self.isolation.ascended(context)
        bad = lowest(losses, self.isolation.isolation_ratio)
        left = torch.ones(len(losses), dtype=torch.bool)
        left[bad] = False
        first = self.isolation.epochs_of(context)
        then = self.training_epochs
        then = max(1, context.hyperparameters.epochs - first) if then is None else then
        passes = Passes(network, context, SETTINGS)
        self.train_on(passes, left.nonzero().flatten(), then)
        self.unlearn(passes, bad)
        return network, {"isolated": len(bad), "of": len(losses), "epochs": [first, then]}

    def train_on(self, passes: Passes, good: Tensor, epochs: int) -> None:
        """Trains on the images at indices `good` for `epochs` epochs."""
        given, purpose = passes.context, streams.TRAINING_ON
        order = given.generator(purpose, streams.ORDER)
        augment = given.generator(purpose, streams.AUGMENTATION, device=given.device)
        for number in track(range(epochs), "epoch"):
            lr = self.isolation.lr if 3 * number < 2 * epochs else self.isolation.lr / 10
            passes.over(in_random_order(good, order), lr, F.cross_entropy, augment)

    def unlearn(self, passes: Passes, bad: Tensor) -> None:
        """Maximizes the cross-entropy of the images at indices `bad`."""
        order = passes.context.generator(streams.UNLEARNING, streams.ORDER)
        for _ in track(range(self.unlearning_epochs), "epoch"):
            passes.over(in_random_order(bad, order), self.unlearning_lr, opposed)
