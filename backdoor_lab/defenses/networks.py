"""Defenses that use networks: filters that rate images, repairs, and the steps they share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from backdoor_lab.core import streams
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.lazy import F, Tensor, nn, torch
from backdoor_lab.core.progress import track
from backdoor_lab.core.streams import Stream
from backdoor_lab.core.types import Features, Images
from backdoor_lab.defenses.base import Filter, Knowledge, Look
from backdoor_lab.defenses.material import Material
from backdoor_lab.numerics.descent import descend
from backdoor_lab.numerics.layers import PENULTIMATE, Tap

CHUNK = 512
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Rating:
    """What a filter makes of images: `scores` float64 (m,), higher is more suspicious;
    `flagged` bool (m,), the highest ones, those that the method's own rule calls poison, None
    where it has no rule; `notes` for the record."""

    scores: Tensor
    flagged: Tensor | None = None
    notes: dict[str, object] = field(default_factory=dict)


class NetworkFilter(Filter):
    """A filter that rates images with the help of networks, not of features.

    ``budget=auto`` removes what is flagged, where the method has a rule of its own, but at most
    half of a class, and nothing of one whose scores are all alike; ``classes=suspicious`` are
    then the classes in which something is flagged.
    """

    needs_clean: ClassVar[bool] = False

    def told(self) -> list[str]:
        return [*super().told(), "material", *["clean images"] * self.needs_clean]

    @abstractmethod
    def rate(self, material: Material, where: Tensor) -> Rating:
        """The rating of the training images at positions `where` int64 (m,)."""

    def look(self, values: Tensor, label: int, known: Knowledge) -> Look:
        raise TypeError(f"{type(self).__name__} looks at images, not at features")

    def survey(
        self,
        features: Features,
        members: dict[int, Tensor],
        wanted: Iterable[int],
        known: Knowledge,
    ) -> dict[int, Look]:
        if known.material is None:
            raise TypeError(f"{type(self).__name__} needs Knowledge.material")
        classes = list(wanted)
        if not classes:
            return {}
        rating = self.rate(known.material, torch.cat([members[y] for y in classes]))
        sizes = [len(members[y]) for y in classes]
        scores = rating.scores.double().cpu().split(sizes)
        if rating.flagged is None:
            looks = [Look(each, notes=rating.notes) for each in scores]
        else:
            counts = [int(each.sum()) for each in rating.flagged.split(sizes)]
            looks = [
                Look(each, float(count), auto_count(each, count), rating.notes)
                for each, count in zip(scores, counts, strict=True)
            ]
        return dict(zip(classes, looks, strict=True))

    def suspects(self, looks: dict[int, Look]) -> list[int]:
        return [y for y, look in looks.items() if look.suspicion]


def auto_count(scores: Tensor, flagged: int) -> int:
    """How many of a class with these `scores` float64 (n,) go, of which `flagged` should."""
    alike = len(scores) < 2 or bool(scores.max() == scores.min())
    return 0 if alike else min(flagged, len(scores) // 2)


class Repair(ABC):
    """A reference that gives a network without a backdoor, and removes no image.

    It may start from the attacked network or train on the training set by itself.
    """

    needs_clean: ClassVar[bool] = True

    def told(self) -> list[str]:
        """What the repair needs, as `Defense.told`."""
        return ["material", *["clean images"] * self.needs_clean]

    def applied(self) -> dict[str, object]:
        """Nothing of the protocol's words for filters: a repair removes no image."""
        return {}

    def check_network(self, network: nn.Module, features: int) -> None:
        """Raises ConfigError, before any training, when such a network cannot be repaired."""

    @abstractmethod
    def repair(self, material: Material) -> tuple[nn.Module, dict[str, object]]:
        """A network of the attacked one's architecture, and notes for the record."""


def clean_of(material: Material) -> Images:
    """The held-out clean images. Raises ConfigError when there are none."""
    if material.clean is None or not len(material.clean):
        raise ConfigError(
            "this defense needs clean images that were held out: set protocol.holdout"
        )
    return material.clean


def logits(network: nn.Module, images: Callable[[int, int], Tensor], n: int) -> Tensor:
    """What `network` says in inference mode of n images, `images(a, b)` those from a to b - 1:
    float (n, classes) on the CPU."""
    return _over(network, images, n, lambda said: said)


def features(network: nn.Module, images: Callable[[int, int], Tensor], n: int) -> Tensor:
    """What goes into the last linear layer, as `logits`: float64 (n, d) on the CPU."""
    with Tap(network, PENULTIMATE) as tap:
        return _over(network, images, n, lambda _: tap.values.double())


def _over(
    network: nn.Module,
    images: Callable[[int, int], Tensor],
    n: int,
    take: Callable[[Tensor], Tensor],
) -> Tensor:
    network.eval()
    parts = []
    with torch.no_grad():
        for start in track(range(0, n, CHUNK), "batch of images"):
            parts.append(take(network(images(start, min(n, start + CHUNK)))).cpu())
        return torch.cat(parts)


def logits_at(network: nn.Module, material: Material, where: Tensor) -> Tensor:
    """`logits` of the training images at positions `where`."""
    return logits(network, lambda a, b: material.images(where[a:b], None), len(where))


def losses_at(network: nn.Module, material: Material, where: Tensor) -> Tensor:
    """The cross-entropy float64 (m,) of each training image at `where` with its label."""
    said = logits_at(network, material, where).double()
    return F.cross_entropy(said, material.labels[where], reduction="none")


def unlikelihood(said: Tensor, labels: Tensor) -> Tensor:
    """The mean of -log(1 - p_y) over logits `said` (n, classes) and `labels` int64 (n,), p_y the
    probability of the label. To descend it unlearns as the ascent of the cross-entropy does,
    but its gradient vanishes once an image is unlearned: it does not run away."""
    others = said.scatter(1, labels[:, None], -torch.inf).logsumexp(dim=1)
    return (said.logsumexp(dim=1) - others).mean()


def apart(size: int) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss that unlearns the first `size` rows and learns the others."""

    def loss(said: Tensor, labels: Tensor) -> Tensor:
        known = F.cross_entropy(said[size:], labels[size:])
        return known + unlikelihood(said[:size], labels[:size])

    return loss


def shuffled(n: int, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """The positions 0..n-1 in random order, int64 in batches of `batch`; the incomplete last
    one is left out unless it is the only one."""
    order = torch.randperm(n, generator=generator)
    for start in track(range(0, max(1, n - batch + 1), batch), "batch"):
        yield order[start : start + batch]


def training_batches(
    material: Material, where: Tensor, epochs: int, purpose: Stream, *, augmented: bool = True
) -> Iterator[Batch]:
    """Batches of the training images at `where` with their labels, for `epochs` passes, on the
    device; augmented as in training, or not at all."""
    order = material.generator(purpose, streams.ORDER)
    augment = None
    if augmented:
        augment = material.generator(purpose, streams.AUGMENTATION, device=material.device)
    for _ in track(range(epochs), "epoch"):
        for part in shuffled(len(where), material.practice.batch, order):
            at = where[part]
            yield material.images(at, augment), material.labels[at].to(material.device)


def clean_batches(material: Material, epochs: int, purpose: Stream) -> Iterator[Batch]:
    """Augmented batches of the held-out clean images, as `training_batches`."""
    clean = clean_of(material)
    order = material.generator(purpose, streams.ORDER)
    augment = material.generator(purpose, streams.AUGMENTATION, device=material.device)
    for _ in track(range(epochs), "epoch"):
        for part in shuffled(len(clean), material.practice.batch, order):
            images = clean.images[part].to(material.device)
            yield material.augment(images, augment), clean.labels[part].to(material.device)


def train(
    network: nn.Module,
    batches: Iterable[Batch],
    practice: tuple[float, float, float],
    *,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    after: Callable[[], None] = lambda: None,
    frozen_statistics: bool = False,
) -> nn.Module:
    """`network` itself, trained by SGD on `batches` and put back in inference mode.

    `practice`: learning rate, momentum, weight decay. `loss(logits, labels)`, by default
    the cross entropy, is descended, `after` called after each step. `frozen_statistics`: batch
    normalisation stays as it is. Raises Diverged when a loss is not finite.
    """
    lr, momentum, decay = practice
    loss = F.cross_entropy if loss is None else loss
    sgd = torch.optim.SGD(network.parameters(), lr=lr, momentum=momentum, weight_decay=decay)
    network.train(not frozen_statistics)
    with torch.enable_grad():
        for images, labels in batches:
            value = loss(network(images), labels)
            descend(sgd, value, "a loss of the defense's own training")
            after()
    return network.eval()


def as_trained(material: Material) -> tuple[float, float, float]:
    """Learning rate, momentum and weight decay of the attacked network's training."""
    practice = material.practice
    return practice.lr, practice.momentum, practice.weight_decay
