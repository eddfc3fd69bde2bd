"""Adversarial neuron pruning: backdoored channels give way first when weights are disturbed."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from backdoor_lab import checks, stopping
from backdoor_lab.defenses.material import Material
from backdoor_lab.defenses.networks import Repair, clean_batches
from backdoor_lab.errors import ConfigError

Loss = Callable[[tuple[Tensor, Tensor], list[Tensor], list[Tensor]], Tensor]
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
Norms = list[tuple[str, nn.BatchNorm1d | nn.BatchNorm2d]]


class Anp(Repair):
    """Prunes the channels whose mask shrinks while a network is kept right under disturbance.

    Wu, Wang, "Adversarial Neuron Pruning Purifies Backdoored Deep Models", NeurIPS 2021,
    section 4, equations 4 to 7. A channel is a batch normalisation's scale γ and shift β. In each
    step every channel's γ is disturbed by a factor δ and its β by 1 + ξ, both within ±`eps`,
    by one signed step of size eps that raises the loss; then the masks m in 0..1 descend

        `alpha` · L(m γ, β) + (1 - alpha) · L((m + δ) γ, (1 + ξ) β)

    over held-out clean images by SGD with rate `lr` and momentum 0.9. Channels whose mask ends
    below `threshold` are pruned: γ becomes 0. The statistics of the normalisations stay as they
    are throughout.
    """

    def __init__(
        self,
        *,
        eps: float = 0.4,
        alpha: float = 0.2,
        threshold: float = 0.2,
        epochs: int = 50,
        lr: float = 0.2,
        classes: str = "",
        budget: str = "",
        budget_cap: str = "",
        centred: bool = True,
    ) -> None:
        self.eps = checks.number("defense.eps", eps, low=0, below=1)
        self.alpha = checks.number("defense.alpha", alpha, low=0, below=1 + 1e-9)
        self.threshold = checks.number("defense.threshold", threshold, low=0, below=1)
        self.epochs = checks.whole("defense.epochs", epochs, low=1)
        self.lr = checks.number("defense.lr", lr, low=0)

    def repair(self, material: Material) -> tuple[nn.Module, dict[str, object]]:
        network = material.network()
        norms: Norms = [
            (name, module)
            for name, module in network.named_modules()
            if isinstance(module, NORMS) and module.affine
        ]
        if not norms:
            raise ConfigError("`defense=anp` needs a network with batch normalisation")
        masks = self.masks(network, norms, material)
        pruned = 0
        with torch.no_grad():
            for (_, module), mask in zip(norms, masks, strict=True):
                module.weight[mask < self.threshold] = 0
                pruned += int((mask < self.threshold).sum())
        return network, {"pruned": pruned, "of": sum(len(mask) for mask in masks)}

    def masks(self, network: nn.Module, norms: Norms, material: Material) -> list[Tensor]:
        """The mask of each of `norms`: float (channels,) in 0..1."""
        scales = [module.weight.detach() for _, module in norms]
        shifts = [module.bias.detach() for _, module in norms]
        masks = [torch.ones_like(each, requires_grad=True) for each in scales]
        sgd = torch.optim.SGD(masks, lr=self.lr, momentum=0.9)

        def loss(batch: tuple[Tensor, Tensor], d: list[Tensor], x: list[Tensor]) -> Tensor:
            changed = {}
            for i, (name, _) in enumerate(norms):
                changed[f"{name}.weight"] = (masks[i] + d[i]) * scales[i]
                changed[f"{name}.bias"] = (1 + x[i]) * shifts[i]
            return F.cross_entropy(functional_call(network, changed, (batch[0],)), batch[1])

        still = [torch.zeros_like(each) for each in scales]
        for batch in clean_batches(material, self.epochs, "pruning"):
            stopping.check()
            with torch.enable_grad():
                d, x = self._disturbed(batch, loss, scales)
                total = self.alpha * loss(batch, still, still)
                total = total + (1 - self.alpha) * loss(batch, d, x)
                found = torch.autograd.grad(total, masks)
            for mask, gradient in zip(masks, found, strict=True):
                mask.grad = gradient
            sgd.step()
            with torch.no_grad():
                for mask in masks:
                    mask.clamp_(0, 1)
        return [mask.detach() for mask in masks]

    def _disturbed(
        self, batch: tuple[Tensor, Tensor], loss: Loss, like: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        d, x = ([torch.zeros_like(each, requires_grad=True) for each in like] for _ in range(2))
        found = torch.autograd.grad(loss(batch, d, x), [*d, *x])
        steps = [self.eps * each.sign() for each in found]
        return steps[: len(d)], steps[len(d) :]
