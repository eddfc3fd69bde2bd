"""ABL, isolation stage: poisoned images are learned earlier than clean ones."""

from __future__ import annotations

from backdoor_lab.core import streams, validation
from backdoor_lab.core.lazy import F, Tensor, nn, torch
from backdoor_lab.core.progress import track
from backdoor_lab.defenses.context import DefenseContext
from backdoor_lab.defenses.networks import ModelBasedFilter, SampleScores, losses_at
from backdoor_lab.defenses.options import DEFAULTS, FilterOptions
from backdoor_lab.defenses.passes import Loss, Passes, PassSettings, in_random_order

SHARE_OF_EPOCHS = 0.2
SETTINGS = PassSettings(batch_size=128, momentum=0.9, weight_decay=1e-4, nesterov=True)


class ABL(ModelBasedFilter):
    """Removes the images with the lowest loss after a few epochs of local gradient ascent.

    Li, Lyu, Koren, Lyu, Li, Ma, "Anti-Backdoor Learning: Training Clean Models on Poisoned Data",
    NeurIPS 2021, section 3.2, equation 3. A separate model is trained on the poisoned set with the
    loss sign(L - `gamma`) · L, where L is the mean cross-entropy of a batch. This keeps the loss of
    most images near gamma, while the loss of poisoned images falls below it. The score of an image
    is its negative cross-entropy in eval mode. ``removal_budget=auto`` removes the images with the
    lowest loss: a fraction `isolation_ratio` of all images, rounded down, but at least two images,
    and never more than half of any class.

    As in the authors' code, images are not augmented, every epoch has the same batches of 128, and
    SGD has the constant learning rate `lr`, Nesterov momentum 0.9 and weight decay 1e-4, regardless
    of the recipe. The images are shuffled once, before the first epoch, since poison may come last
    in the set.

    `epochs` is the number of epochs of the separate model. By default, it is a fifth of the
    recipe's, as in the paper (20 of 100). The authors' code uses 10 (``defense=abl_authors``).
    """

    def __init__(
        self,
        options: FilterOptions = DEFAULTS,
        *,
        gamma: float = 0.5,
        epochs: int | None = None,
        lr: float = 0.1,
        isolation_ratio: float = 0.01,
    ) -> None:
        super().__init__(options)
        self.gamma = validation.number("defense.gamma", gamma, low=0)
        self.epochs = None if epochs is None else validation.whole("defense.epochs", epochs, low=1)
        self.lr = validation.number("defense.lr", lr, low=0)
        self.isolation_ratio = validation.number(
            "defense.isolation_ratio", isolation_ratio, low=0, below=1
        )

    def score_images(self, context: DefenseContext, where: Tensor) -> SampleScores:
        _, losses = self.ascended(context)
        chosen = torch.zeros(len(losses), dtype=torch.bool)
        chosen[lowest(losses, self.isolation_ratio)] = True
        return SampleScores(-losses[where], chosen[where])

    def ascended(self, context: DefenseContext) -> tuple[nn.Module, Tensor]:
        """Returns a model trained on the whole set with local gradient ascent, and the loss float64
        (n,) of each training image."""
        everything = torch.arange(len(context.labels))
        network = context.fresh(0)
        passes = Passes(network, context, SETTINGS)
        draw = context.generator(streams.ISOLATION, streams.ORDER)
        order = in_random_order(everything, draw)
        for _ in track(range(self.epochs_of(context)), "epoch"):
            passes.over(order, self.lr, ascent(self.gamma))
        return network, losses_at(network, context, everything)

    def epochs_of(self, context: DefenseContext) -> int:
        """Returns the number of epochs of local gradient ascent."""
        return self.epochs or max(1, round(SHARE_OF_EPOCHS * context.hyperparameters.epochs))


def ascent(gamma: float) -> Loss:
    """Returns the loss sign(L - gamma) · L for logits and labels, where L is their mean
    cross-entropy."""

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        mean = F.cross_entropy(outputs, labels)
        return (mean.detach() - gamma).sign() * mean

    return loss


def lowest(losses: Tensor, share: float) -> Tensor:
    """Returns the indices of the lowest `losses` (n,). Their number is `share` times n, rounded
    down, but at least two."""
    # Unlearning uses batch normalization, which needs at least two images.
    count = max(2, int(share * len(losses)))
    return losses.sort(stable=True).indices[:count]
