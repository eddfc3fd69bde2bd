"""ANP: prunes the channels that are most sensitive to weight perturbations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

from backdoor_lab.core import shutdown, streams, validation
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.lazy import F, Tensor, nn, torch
from backdoor_lab.core.progress import track
from backdoor_lab.defenses.context import DefenseContext
from backdoor_lab.defenses.networks import Batch, ModelRepair, clean_of

Norms: TypeAlias = "list[tuple[str, nn.BatchNorm1d | nn.BatchNorm2d]]"
Loss: TypeAlias = "Callable[[Batch, list[Tensor]], Tensor]"
START = 1
"""Number of the random stream from which the initial perturbations are drawn."""


class ANP(ModelRepair):
    """Trains channel masks under adversarial perturbation, and prunes channels with small masks.

    Wu, Wang, "Adversarial Neuron Pruning Purifies Backdoored Deep Models", NeurIPS 2021, section 4.
    Each channel of a batch normalization has a scale γ, a shift β and a mask m. Each step perturbs
    the scale to (m + δ) γ and the shift to (1 + ξ) β: δ and ξ are drawn uniformly from [-`eps`,
    `eps`] and then changed by one signed step of size eps that increases the loss L, so that they
    lie in [-2 eps, 2 eps]. Then SGD with learning rate `lr` and momentum 0.9 changes the masks,
    which are clipped to 0..1, to decrease

        `alpha` · L(m γ, β) + (1 - alpha) · L((m + δ) γ, (1 + ξ) β).

    Each of the `steps` uses a batch of `batch_size` images, augmented as in training and drawn with
    replacement from at most `clean_images` of the held-out clean images. Channels whose final mask
    is at most `threshold` are pruned: γ = 0.

    Batches are normalized by their own statistics. All defaults are the paper's; 500 clean images
    are 1 % of CIFAR-10's training set.
    """

    def __init__(
        self,
        *,
        eps: float = 0.4,
        alpha: float = 0.2,
        threshold: float = 0.2,
        steps: int = 2000,
        lr: float = 0.2,
        batch_size: int = 128,
        clean_images: int = 500,
    ) -> None:
        self.eps = validation.number("defense.eps", eps, low=0, below=1)
        self.alpha = validation.number("defense.alpha", alpha, low=0, below=1 + 1e-9)
        self.threshold = validation.number("defense.threshold", threshold, low=0, below=1)
        self.steps = validation.whole("defense.steps", steps, low=1)
        self.lr = validation.number("defense.lr", lr, low=0)
        self.batch_size = validation.whole("defense.batch_size", batch_size, low=1)
        self.clean_images = validation.whole("defense.clean_images", clean_images, low=1)

    def check_network(self, network: nn.Module, features: int) -> None:
        norms_of(network)

    def repair(self, context: DefenseContext) -> tuple[nn.Module, dict[str, object]]:
        network = context.network()
        norms = norms_of(network)
        masks = self.masks(context)
        pruned = 0
        with torch.no_grad():
            for (_, module), mask in zip(norms, masks, strict=True):
                module.weight[mask <= self.threshold] = 0
                pruned += int((mask <= self.threshold).sum())
        return network, {"pruned": pruned, "of": sum(len(mask) for mask in masks)}

    def masks(self, context: DefenseContext) -> list[Tensor]:
        """Returns the mask of each batch normalization of the attacked model: float (channels,),
        0..1."""
        network = context.network()
        norms = norms_of(network)
        for _, module in norms:
            module.train()
        masks = [torch.ones_like(module.weight, requires_grad=True) for _, module in norms]
        loss = masked_loss(network, norms, masks)
        start = context.generator(streams.PRUNING, START)
        sgd = torch.optim.SGD(masks, lr=self.lr, momentum=0.9)
        for batch in drawn(context, self.steps, self.batch_size, self.clean_images):
            shutdown.check()
            with torch.enable_grad():
                total = self._objective(loss, batch, masks, start)
                for mask, slope in zip(masks, torch.autograd.grad(total, masks), strict=True):
                    mask.grad = slope
            sgd.step()
            with torch.no_grad():
                for mask in masks:
                    mask.clamp_(0, 1)
        return [mask.detach() for mask in masks]

    def _objective(
        self, loss: Loss, batch: Batch, masks: list[Tensor], start: torch.Generator
    ) -> Tensor:
        unperturbed = [torch.zeros_like(each) for each in masks * 2]
        noise = [uniform(each, self.eps, start) for each in unperturbed]
        uphill = torch.autograd.grad(loss(batch, noise), noise)
        worst = [
            each.detach() + self.eps * slope.sign()
            for each, slope in zip(noise, uphill, strict=True)
        ]
        return self.alpha * loss(batch, unperturbed) + (1 - self.alpha) * loss(batch, worst)


def masked_loss(network: nn.Module, norms: Norms, masks: list[Tensor]) -> Loss:
    """Returns a function that takes a batch and a perturbation, and returns the cross-entropy of
    `network` with the scales (m + δ) γ and the shifts (1 + ξ) β, where m are the `masks`. The
    perturbation is a list that contains δ for each of `norms`, followed by ξ for each of `norms`.
    """
    scales = [module.weight.detach() for _, module in norms]
    shifts = [module.bias.detach() for _, module in norms]

    def loss(batch: Batch, perturbation: list[Tensor]) -> Tensor:
        changed = {}
        for i, (name, _) in enumerate(norms):
            changed[f"{name}.weight"] = (masks[i] + perturbation[i]) * scales[i]
            changed[f"{name}.bias"] = (1 + perturbation[len(norms) + i]) * shifts[i]
        outputs = torch.func.functional_call(network, changed, (batch[0],))
        return F.cross_entropy(outputs, batch[1])

    return loss


def uniform(like: Tensor, bound: float, generator: torch.Generator) -> Tensor:
    """Returns numbers drawn uniformly from [-`bound`, `bound`], with the shape and type of `like`,
    as a tensor that requires grad."""
    drawn = 2 * torch.rand(like.shape, generator=generator) - 1
    return (bound * drawn).to(like).requires_grad_()


def norms_of(network: nn.Module) -> Norms:
    """Returns the names and modules of the batch normalizations that have a scale and a shift.
    Raises ConfigError if there are none."""
    found = [
        (name, module)
        for name, module in network.named_modules()
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) and module.affine
    ]
    if not found:
        raise ConfigError(
            "`defense=anp` needs a network with batch normalization, such as model=resnet18"
        )
    return found


def drawn(context: DefenseContext, steps: int, size: int, most: int) -> Iterator[Batch]:
    """Yields `steps` augmented batches of `size` images, drawn with replacement from the held-out
    clean images. Of these, at most `most` are used, selected at random."""
    clean = clean_of(context)
    generator = context.generator(streams.PRUNING)
    augment = context.generator(streams.PRUNING_AUGMENTATION, device=context.device)
    known = torch.randperm(len(clean), generator=generator)[:most]
    for _ in track(range(steps), "batch"):
        at = known[torch.randint(len(known), (size,), generator=generator)]
        images = context.augment(clean.images[at].to(context.device), augment)
        yield images, clean.labels[at].to(context.device)
