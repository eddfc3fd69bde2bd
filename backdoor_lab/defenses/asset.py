"""ASSET: unlearns all images and relearns clean ones; poison keeps a high loss."""

from __future__ import annotations

from collections.abc import Iterator

from backdoor_lab.core import streams, validation
from backdoor_lab.core.lazy import Tensor, torch
from backdoor_lab.core.progress import track
from backdoor_lab.defenses.base import finite
from backdoor_lab.defenses.budget import otsu_count
from backdoor_lab.defenses.context import DefenseContext
from backdoor_lab.defenses.networks import (
    Batch,
    ModelBasedFilter,
    SampleScores,
    apart,
    clean_of,
    losses_at,
    train,
)
from backdoor_lab.defenses.options import DEFAULTS, FilterOptions


class ASSET(ModelBasedFilter):
    """Removes images whose loss rises when a model learns clean images and unlearns all others.

    Pan, Zeng, Lyu, Lin, Jia, "ASSET: Robust Backdoor Data Detection Across a Multiplicity of
    Deep Learning Paradigms", USENIX Security 2023, section 4. A copy of the attacked model
    minimizes the loss on held-out clean images and maximizes it on the training set. The two
    cancel for clean images, but nothing offsets the increase for poison. Score: L of the image.
    In the second half of the `steps`, only the fraction `concentrate` of the set with the
    highest loss, where poison is concentrated, is unlearned.

    Simplified: unlearning minimizes `unlikelihood`, which does not diverge; images are
    selected by loss; ``removal_budget=auto`` removes the upper of the two groups into which
    `budget.split` divides all scores. The authors' code starts from an untrained model, minimizes
    the variance of the logits on clean images, and selects by a second network's outlyingness.
    """

    needs_clean = True

    def __init__(
        self,
        options: FilterOptions = DEFAULTS,
        *,
        steps: int = 200,
        concentrate: float = 0.5,
        lr: float = 0.01,
    ) -> None:
        super().__init__(options)
        self.steps = validation.whole("defense.steps", steps, low=2)
        self.concentrate = validation.number(
            "defense.concentrate", concentrate, low=0, below=1 + 1e-9
        )
        self.lr = validation.number("defense.lr", lr, low=0)

    def score_images(self, context: DefenseContext, where: Tensor) -> SampleScores:
        network = context.network()
        rates = self.lr, context.hyperparameters.momentum, context.hyperparameters.weight_decay
        everything = torch.arange(len(context.labels))
        first = self.steps // 2
        size = context.hyperparameters.batch_size
        train(network, mixed(context, everything, first, 0), rates, loss=apart(size))
        losses = losses_at(network, context, everything)
        kept = max(1, round(self.concentrate * len(everything)))
        high = losses.sort(descending=True, stable=True).indices[:kept]
        train(network, mixed(context, high, self.steps - first, 1), rates, loss=apart(size))
        losses = losses_at(network, context, everything)
        flagged = torch.zeros(len(losses), dtype=torch.bool)
        finite(losses, "losses")
        flagged[losses.sort(descending=True, stable=True).indices[: otsu_count(losses)]] = True
        return SampleScores(losses[where], flagged[where])


def mixed(context: DefenseContext, among: Tensor, steps: int, number: int) -> Iterator[Batch]:
    """Yields batches of training images at indices `among`, then as many clean images."""
    clean, size = clean_of(context), context.hyperparameters.batch_size
    generator = context.generator(streams.OFFSET, number)
    augment = context.generator(streams.OFFSET_AUGMENTATION, number, device=context.device)
    for _ in track(range(steps), "batch"):
        at = among[torch.randint(len(among), (size,), generator=generator)]
        chosen = torch.randint(len(clean), (size,), generator=generator)
        images = clean.images[chosen].to(context.device)
        images = torch.cat([context.images(at, augment), context.augment(images, augment)])
        labels = torch.cat([context.labels[at], clean.labels[chosen]])
        yield images, labels.to(context.device)
