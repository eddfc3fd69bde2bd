"""Anti-backdoor learning, its first half: poison is what is learned soonest."""

from __future__ import annotations

from collections.abc import Callable

from backdoor_lab.core import checks, streams
from backdoor_lab.core.lazy import F, Tensor, nn, torch
from backdoor_lab.defenses.material import Material
from backdoor_lab.defenses.networks import (
    NetworkFilter,
    Rating,
    as_trained,
    losses_at,
    train,
    training_batches,
)
from backdoor_lab.defenses.options import DEFAULTS, FilterOptions

SHARE_OF_EPOCHS = 0.2


class Abl(NetworkFilter):
    """Removes the images whose loss is lowest after a few epochs of local gradient ascent.

    Li, Lyu, Koren, Lyu, Li, Ma, "Anti-Backdoor Learning: Training Clean Models on Poisoned
    Data", NeurIPS 2021, section 3.2, equation 3. A network of its own is trained on the poisoned
    set, with sign(L - `gamma`) · L in place of each batch's mean cross-entropy L: images that
    are fitted early are held at gamma, but poison falls below. Score: -L of the image, in
    inference mode and without augmentation. ``budget=auto`` removes the share `isolate` of all
    images whose loss is lowest.

    `epochs` of this training; null: a fifth of the recipe's, as the paper's 20 of 100. The
    learning rate stays that of the recipe.
    """

    def __init__(
        self,
        options: FilterOptions = DEFAULTS,
        *,
        gamma: float = 0.5,
        epochs: int | None = None,
        isolate: float = 0.01,
    ) -> None:
        super().__init__(options)
        self.gamma = checks.number("defense.gamma", gamma, low=0)
        self.epochs = None if epochs is None else checks.whole("defense.epochs", epochs, low=1)
        self.isolate = checks.number("defense.isolate", isolate, low=0, below=1)

    def rate(self, material: Material, where: Tensor) -> Rating:
        network = ascended(material, self.gamma, self.passes(material))
        losses = losses_at(network, material, torch.arange(len(material.labels)))
        chosen = torch.zeros(len(losses), dtype=torch.bool)
        chosen[lowest(losses, self.isolate)] = True
        return Rating(-losses[where], chosen[where])

    def passes(self, material: Material) -> int:
        """How many epochs its own training takes."""
        return self.epochs or max(1, round(SHARE_OF_EPOCHS * material.practice.epochs))


def ascended(material: Material, gamma: float, epochs: int) -> nn.Module:
    """A network trained on the whole set with local gradient ascent."""
    everything = torch.arange(len(material.labels))
    batches = training_batches(material, everything, epochs, streams.ISOLATION)
    return train(material.fresh(0), batches, as_trained(material), loss=ascent(gamma))


def ascent(gamma: float) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss sign(L - gamma) · L of logits and labels, L their mean cross-entropy."""

    def loss(said: Tensor, labels: Tensor) -> Tensor:
        mean = F.cross_entropy(said, labels)
        return (mean.detach() - gamma).sign() * mean

    return loss


def lowest(losses: Tensor, share: float) -> Tensor:
    """Positions of the `share` of `losses` (n,) that are lowest, at least one."""
    count = max(1, round(share * len(losses)))
    return losses.sort(stable=True).indices[:count]
