"""D-BR: what is sensitive to a transformation is unlearned, what is not is relearned."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from backdoor_lab import checks
from backdoor_lab.defenses.material import Material
from backdoor_lab.defenses.networks import features
from backdoor_lab.defenses.unlearning import Unlearning
from backdoor_lab.errors import ConfigError, Diverged


class DBr(Unlearning):
    """Splits the training set by how far a half turn moves an image's features, and unlearns.

    Chen, Wu, Wang, "Effective Backdoor Defense by Exploiting Sensitivity of Poisoned Samples",
    NeurIPS 2022, sections 4 and 5, D-BR. For each training image x the feature consistency
    towards transformations |f(x) - f(t(x))|^2, f what goes into the last linear layer. The share
    `clean` of images that move least are taken for clean, the share `poison` that move most for
    poison, the others for neither; for `epochs` passes over the poison the network relearns the
    one and unlearns the other, with rate `lr`.

    Reduced: it starts from the attacked network, where the paper trains one for a few epochs and
    then tightens its classes; the transformation is a turn by 180°; both halves of a step are
    taken at once, and unlearning descends `unlikelihood` instead of ascending the
    cross-entropy, which has no bound.
    """

    def __init__(
        self,
        *,
        clean: float = 0.2,
        poison: float = 0.05,
        epochs: int = 20,
        lr: float = 0.0005,
        classes: str = "",
        budget: str = "",
        budget_cap: str = "",
        centred: bool = True,
    ) -> None:
        self.clean = checks.number("defense.clean", clean, low=1e-9, below=1)
        self.poison = checks.number("defense.poison", poison, low=1e-9, below=1)
        if self.clean + self.poison > 1:
            raise ConfigError(
                f"`defense.clean` and `defense.poison` are shares of one set, got {clean:g} and"
                f" {poison:g}"
            )
        self.epochs = checks.whole("defense.epochs", epochs, low=0)
        self.lr = checks.number("defense.lr", lr, low=0)

    def repair(self, material: Material) -> tuple[nn.Module, dict[str, object]]:
        network = material.network()
        order = sensitivity(network, material).sort(stable=True).indices
        good = order[: max(1, round(self.clean * len(order)))]
        bad = order[-max(1, round(self.poison * len(order))) :]
        self.unlearn(network, material, bad, good, self.epochs, self.lr)
        return network, {"clean": len(good), "poison": len(bad), "of": len(order)}


def sensitivity(network: nn.Module, material: Material) -> Tensor:
    """How far a turn by 180° moves each training image's features, squared: float64 (n,)."""
    n = len(material.labels)

    def plain(start: int, stop: int) -> Tensor:
        return material.images(torch.arange(start, stop), None)

    def turned(start: int, stop: int) -> Tensor:
        return plain(start, stop).flip((2, 3))

    moved = features(network, plain, n) - features(network, turned, n)
    moved = moved.square().sum(dim=1)
    if not bool(torch.isfinite(moved).all()):
        raise Diverged("features are not finite: they cannot be compared")
    return moved
