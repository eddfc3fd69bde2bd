"""Confusion training: poison is what can still be fitted beside wrong labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from backdoor_lab.core import checks, streams
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.lazy import F, Tensor, torch
from backdoor_lab.core.progress import track
from backdoor_lab.defenses.material import Material
from backdoor_lab.defenses.networks import (
    Batch,
    NetworkFilter,
    Rating,
    clean_of,
    logits_at,
    train,
)
from backdoor_lab.defenses.options import DEFAULTS, FilterOptions


class Confusion(NetworkFilter):
    """Removes the images that a network still fits while wrong labels undo what it knows.

    Qi, Xie, Wang, Wu, Mahloujifar, Mittal, "Towards A Proactive ML Approach for Detecting
    Backdoor Poison Samples", USENIX Security 2023, section 4. A copy of the attacked network is
    trained on batches of the poisoned set together with held-out clean images whose labels are
    random wrong ones, drawn anew each time: loss (L_set + (`weight` - 1) · L_wrong) / `weight`.
    That destroys what ties images to classes, but not the tie between a trigger and its target,
    which no wrong label contradicts. One round for each of `shares`, of `steps` steps: after
    each, only that share of the set with the lowest loss is trained on in the next. Score: -L of
    the image. ``budget=auto`` removes as many of a class as are still classified as labelled.

    Reduced: the paper trains a network on each round's share before confusing it, and clusters
    the fitted images of each class at the end.
    """

    needs_clean = True

    def __init__(
        self,
        options: FilterOptions = DEFAULTS,
        *,
        shares: Sequence[float] = (0.5, 0.2, 0.05),
        steps: int = 200,
        weight: float = 20.0,
        lr: float = 0.01,
    ) -> None:
        super().__init__(options)
        if not isinstance(shares, (list, tuple)) or not shares:
            raise ConfigError(f"`defense.shares` must be a list, as [0.5, 0.2], got {shares!r}")
        self.shares = [
            checks.number("defense.shares", each, low=1e-9, below=1 + 1e-9) for each in shares
        ]
        self.steps = checks.whole("defense.steps", steps, low=1)
        self.weight = checks.number("defense.weight", weight, low=1)
        self.lr = checks.number("defense.lr", lr, low=0)

    def rate(self, material: Material, where: Tensor) -> Rating:
        network = material.network()
        rates = self.lr, material.practice.momentum, material.practice.weight_decay
        everything = torch.arange(len(material.labels))
        among = everything
        for number, share in enumerate(track(self.shares, "round")):
            size = min(material.practice.batch, len(among))
            batches = confusing(material, among, size, self.steps, number)
            train(network, batches, rates, loss=weighed(size, self.weight))
            said = logits_at(network, material, everything)
            losses = F.cross_entropy(said.double(), material.labels, reduction="none")
            kept = max(1, round(share * len(everything)))
            among = losses.sort(stable=True).indices[:kept]
        fitted = said.argmax(dim=1) == material.labels
        return Rating(-losses[where], fitted[where])


def weighed(size: int, weight: float) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss (L_set + (weight - 1) · L_wrong) / weight, the first `size` rows being the set's."""

    def loss(said: Tensor, labels: Tensor) -> Tensor:
        ours = F.cross_entropy(said[:size], labels[:size])
        wrong = F.cross_entropy(said[size:], labels[size:])
        return (ours + (weight - 1) * wrong) / weight

    return loss


def confusing(
    material: Material, among: Tensor, size: int, steps: int, number: int
) -> Iterator[Batch]:
    """Batches of `size` training images of positions `among`, then clean ones wrongly labelled."""
    clean, classes = clean_of(material), len(material.classes)
    generator = material.generator(streams.CONFUSION, number)
    augment = material.generator(streams.CONFUSION_AUGMENTATION, number, device=material.device)
    for _ in track(range(steps), "batch"):
        at = among[torch.randint(len(among), (size,), generator=generator)]
        chosen = torch.randint(len(clean), (material.practice.batch,), generator=generator)
        wrong = wrong_labels(clean.labels[chosen], classes, generator)
        images = clean.images[chosen].to(material.device)
        images = torch.cat([material.images(at, augment), material.augment(images, augment)])
        yield images, torch.cat([material.labels[at], wrong]).to(material.device)


def wrong_labels(labels: Tensor, classes: int, generator: torch.Generator) -> Tensor:
    """A label drawn evenly from all others, for each of `labels` int64 (n,)."""
    step = torch.randint(1, classes, (len(labels),), generator=generator)
    return (labels + step) % classes
