"""ANP: prunes the channels that are most sensitive to weight perturbations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

from backdoor_lab.core import shutdown, streams, validation
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.lazy import F, Tensor, nn, torch
from backdoor_lab.core.progress import track
from backdoor_lab.defenses.context import DefenseContext
from backdoor_lab.defenses.networks import Batch, ModelRepair, clean_of

Norms: TypeAlias = "list[tuple[str, nn.BatchNorm1d | nn.BatchNorm2d]]"


class ANP(ModelRepair):
    """Prunes channels whose mask shrinks during training under adversarial perturbation.

    Wu, Wang, "Adversarial Neuron Pruning Purifies Backdoored Deep Models", NeurIPS 2021,
    section 4. A channel is the scale γ and shift β of a batch normalization. Each step perturbs
    γ by a factor δ and β by a factor 1 + ξ, both in ±`eps`, by one signed step of size eps from
    zero that increases the loss; then the masks m in 0..1 descend

        `alpha` · L(m γ, β) + (1 - alpha) · L((m + δ) γ, (1 + ξ) β)

    on held-out clean images by SGD with learning rate `lr` and momentum 0.9, in `steps` batches
    drawn with replacement. Channels whose final mask is below `threshold` are pruned: γ = 0.

    Batches are normalized by their own statistics, as in the authors' code. With running
    statistics the perturbation grows from layer to layer until the model is at chance level,
    and its gradient is useless. The defaults are the paper's except for the batch size, which is
    the recipe's (128 in the paper and in `recipe=report`); the authors' code starts δ and ξ at
    random in ±eps, so that they reach ±2 eps.
    """

    def __init__(
        self,
        *,
        eps: float = 0.4,
        alpha: float = 0.2,
        threshold: float = 0.2,
        steps: int = 2000,
        lr: float = 0.2,
    ) -> None:
        self.eps = validation.number("defense.eps", eps, low=0, below=1)
        self.alpha = validation.number("defense.alpha", alpha, low=0, below=1 + 1e-9)
        self.threshold = validation.number("defense.threshold", threshold, low=0, below=1)
        self.steps = validation.whole("defense.steps", steps, low=1)
        self.lr = validation.number("defense.lr", lr, low=0)

    def check_network(self, network: nn.Module, features: int) -> None:
        norms_of(network)

    def repair(self, context: DefenseContext) -> tuple[nn.Module, dict[str, object]]:
        network = context.network()
        norms = norms_of(network)
        masks = self.masks(context)
        pruned = 0
        with torch.no_grad():
            for (_, module), mask in zip(norms, masks, strict=True):
                module.weight[mask < self.threshold] = 0
                pruned += int((mask < self.threshold).sum())
        return network, {"pruned": pruned, "of": sum(len(mask) for mask in masks)}

    def masks(self, context: DefenseContext) -> list[Tensor]:
        """The mask of each batch normalization of the attacked model: float (channels,), 0..1."""
        network = context.network()
        norms = norms_of(network)
        for _, module in norms:
            module.train()
        scales = [module.weight.detach() for _, module in norms]
        shifts = [module.bias.detach() for _, module in norms]
        masks = [torch.ones_like(each, requires_grad=True) for each in scales]
        sgd = torch.optim.SGD(masks, lr=self.lr, momentum=0.9)

        def loss(batch: Batch, d: list[Tensor], x: list[Tensor]) -> Tensor:
            changed = {}
            for i, (name, _) in enumerate(norms):
                changed[f"{name}.weight"] = (masks[i] + d[i]) * scales[i]
                changed[f"{name}.bias"] = (1 + x[i]) * shifts[i]
            return F.cross_entropy(
                torch.func.functional_call(network, changed, (batch[0],)), batch[1]
            )

        for batch in drawn(context, self.steps):
            shutdown.check()
            with torch.enable_grad():
                d, x = ([torch.zeros_like(s, requires_grad=True) for s in scales] for _ in "dx")
                # At d = 0 the gradients w.r.t. d and the masks are equal: one pass gives both.
                plain = torch.autograd.grad(loss(batch, d, x), [*d, *x])
                worst = [self.eps * each.sign() for each in plain]
                disturbed = loss(batch, worst[: len(d)], worst[len(d) :])
                robust = torch.autograd.grad(disturbed, masks)
            for mask, one, other in zip(masks, plain[: len(d)], robust, strict=True):
                mask.grad = self.alpha * one + (1 - self.alpha) * other
            sgd.step()
            with torch.no_grad():
                for mask in masks:
                    mask.clamp_(0, 1)
        return [mask.detach() for mask in masks]


def norms_of(network: nn.Module) -> Norms:
    """Names and modules of the batch normalizations with scale and shift. Raises ConfigError if
    there are none."""
    found = [
        (name, module)
        for name, module in network.named_modules()
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) and module.affine
    ]
    if not found:
        raise ConfigError("`defense=anp` needs a network with batch normalization")
    return found


def drawn(context: DefenseContext, steps: int) -> Iterator[Batch]:
    """Yields `steps` augmented batches of held-out clean images, drawn with replacement."""
    clean = clean_of(context)
    generator = context.generator(streams.PRUNING)
    augment = context.generator(streams.PRUNING_AUGMENTATION, device=context.device)
    for _ in track(range(steps), "batch"):
        at = torch.randint(len(clean), (context.hyperparameters.batch_size,), generator=generator)
        images = context.augment(clean.images[at].to(context.device), augment)
        yield images, clean.labels[at].to(context.device)
