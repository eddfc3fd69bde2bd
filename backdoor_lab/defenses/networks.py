"""Base classes of filters and repairs that use models, and functions for these defenses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from backdoor_lab import returned
from backdoor_lab.core import streams
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.lazy import F, Tensor, nn, torch
from backdoor_lab.core.progress import track
from backdoor_lab.core.streams import Stream
from backdoor_lab.core.types import Features, LabeledImages
from backdoor_lab.defenses.base import ClassScores, DefenderKnowledge, SampleFilter
from backdoor_lab.defenses.context import DefenseContext
from backdoor_lab.numerics.descent import descend
from backdoor_lab.numerics.layers import PENULTIMATE, FeatureHook

CHUNK = 512
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class SampleScores:
    """The result of a filter for m images.

    `scores` float64 (m,): higher is more suspicious. `flagged` bool (m,): the images that the
    method's own rule calls poison, which have the highest scores of their class; None if the method
    has no such rule. `notes`: values to store in the cell's record.
    """

    scores: Tensor
    flagged: Tensor | None = None
    notes: dict[str, object] = field(default_factory=dict)


class ModelBasedFilter(SampleFilter):
    """A filter that scores images with models instead of scoring features.

    A method may have its own rule for flagging images. In this case, ``removal_budget=auto``
    removes the flagged images of a class, but at most half of the class, and none if all scores of
    the class are equal. ``filter_scope=suspicious`` then selects the classes with flagged images.
    """

    needs_clean: ClassVar[bool] = False

    def requires(self) -> list[str]:
        return [*super().requires(), "context", *["clean images"] * self.needs_clean]

    @abstractmethod
    def score_images(self, context: DefenseContext, where: Tensor) -> SampleScores:
        """Scores the training images at indices `where` int64 (m,)."""

    def score_class(self, values: Tensor, label: int, known: DefenderKnowledge) -> ClassScores:
        raise TypeError(f"{type(self).__name__} scores images, not features: call `score_classes`")

    def score_classes(
        self,
        features: Features,
        members: dict[int, Tensor],
        wanted: Iterable[int],
        known: DefenderKnowledge,
    ) -> dict[int, ClassScores]:
        if known.context is None:
            raise TypeError(
                f"{type(self).__name__} needs the networks and images in"
                " DefenderKnowledge.context, got None"
            )
        classes = list(wanted)
        if not classes:
            return {}
        where = torch.cat([members[y] for y in classes])
        rating = self.score_images(known.context, where)
        returned.sample_scores(self, "score_images", rating, SampleScores, len(where))
        sizes = [len(members[y]) for y in classes]
        scores = rating.scores.detach().double().cpu().split(sizes)
        if rating.flagged is None:
            scores_of = [ClassScores(each, notes=rating.notes) for each in scores]
        else:
            counts = [int(each.sum()) for each in rating.flagged.split(sizes)]
            scores_of = [
                ClassScores(each, float(count), auto_count(each, count), rating.notes)
                for each, count in zip(scores, counts, strict=True)
            ]
        return dict(zip(classes, scores_of, strict=True))

    def suspicious_classes(self, scores_of: dict[int, ClassScores]) -> list[int]:
        return [y for y, scored in scores_of.items() if scored.suspicion]


def auto_count(scores: Tensor, flagged: int) -> int:
    """Returns how many examples of a class ``removal_budget=auto`` removes: the number of `flagged`
    examples, but at most half of the class, and none if all `scores` float64 (n,) are equal."""
    alike = len(scores) < 2 or bool(scores.max() == scores.min())
    return 0 if alike else min(flagged, len(scores) // 2)


class ModelRepair(ABC):
    """Base class of methods that produce a model without a backdoor and remove no image.

    A repair may start from the attacked model or train a new one on the training set.
    """

    needs_clean: ClassVar[bool] = True
    #: Whether the repair trains by SGD with the momentum and weight decay of the recipe.
    needs_sgd: ClassVar[bool] = False

    def check_optimizer(self, name: str) -> None:
        """Raises ConfigError if the repair cannot reuse the hyperparameters of the optimizer `name`
        that trained the attacked model."""
        if self.needs_sgd and name != "sgd":
            raise ConfigError(
                f"{type(self).__name__} trains by SGD with the recipe's momentum and weight decay,"
                f" but `recipe.optimizer={name}`: choose a recipe with recipe.optimizer=sgd, or"
                " defense=fine_tuning, which has its own"
            )

    def requires(self) -> list[str]:
        """See `Defense.requires`."""
        return ["context", *["clean images"] * self.needs_clean]

    def applied(self) -> dict[str, object]:
        """Returns no options: filter options do not apply to a repair, which removes no images."""
        return {}

    def check_network(self, network: nn.Module, features: int) -> None:
        """Raises ConfigError, before any training, if the repair does not support the architecture
        of `network`, or its number of features per image, `features`."""

    @abstractmethod
    def repair(self, context: DefenseContext) -> tuple[nn.Module, dict[str, object]]:
        """Returns a model with the architecture of the attacked model, and notes for the record."""


def clean_of(context: DefenseContext) -> LabeledImages:
    """Returns the held-out clean images. Raises ConfigError if there are none."""
    if context.clean is None or not len(context.clean):
        raise ConfigError("this defense needs held-out clean images: set protocol.clean_holdout")
    return context.clean


def logits(network: nn.Module, images: Callable[[int, int], Tensor], n: int) -> Tensor:
    """Returns the logits of `network` in eval mode for n images: float (n, classes) on the CPU.
    `images(a, b)` returns images a to b - 1."""
    return _over(network, images, n, lambda outputs: outputs)


def features(network: nn.Module, images: Callable[[int, int], Tensor], n: int) -> Tensor:
    """Returns the inputs of the last linear layer, float64 (n, d) on the CPU; arguments as for
    `logits`."""
    with FeatureHook(network, PENULTIMATE) as tap:
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


def logits_at(network: nn.Module, context: DefenseContext, where: Tensor) -> Tensor:
    """Returns the logits of the training images at indices `where`: float (m, classes) on the
    CPU."""
    return logits(network, lambda a, b: context.images(where[a:b], None), len(where))


def losses_at(network: nn.Module, context: DefenseContext, where: Tensor) -> Tensor:
    """Returns the cross-entropy, float64 (m,), of each training image whose index is in `where`."""
    outputs = logits_at(network, context, where).double()
    return F.cross_entropy(outputs, context.labels[where], reduction="none")


def unlikelihood(outputs: Tensor, labels: Tensor) -> Tensor:
    """Returns the mean of -log(1 - p_y) for logits `outputs` (n, classes) and `labels` int64 (n,),
    where p_y is the label's probability. Minimizing it unlearns the labels, as maximizing the
    cross-entropy does, but the gradient vanishes once an image is unlearned, so that training does
    not diverge."""
    others = outputs.scatter(1, labels[:, None], -torch.inf).logsumexp(dim=1)
    return (outputs.logsumexp(dim=1) - others).mean()


def apart(size: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Returns a loss that unlearns the first `size` rows of a batch and learns the other rows."""

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        known = F.cross_entropy(outputs[size:], labels[size:])
        return known + unlikelihood(outputs[:size], labels[:size])

    return loss


def shuffled(n: int, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yields the indices 0..n-1 in random order, in int64 batches of size `batch`. An incomplete
    last batch is dropped unless it is the only one."""
    order = torch.randperm(n, generator=generator)
    for start in track(range(0, max(1, n - batch + 1), batch), "batch"):
        yield order[start : start + batch]


def clean_batches(context: DefenseContext, epochs: int, purpose: Stream) -> Iterator[Batch]:
    """Yields batches of held-out clean images and their labels, on the context's device, for
    `epochs` passes. The images are augmented as in training."""
    clean = clean_of(context)
    order = context.generator(purpose, streams.ORDER)
    augment = context.generator(purpose, streams.AUGMENTATION, device=context.device)
    for _ in track(range(epochs), "epoch"):
        for part in shuffled(len(clean), context.hyperparameters.batch_size, order):
            images = clean.images[part].to(context.device)
            yield context.augment(images, augment), clean.labels[part].to(context.device)


def train(
    network: nn.Module,
    batches: Iterable[Batch],
    hyperparameters: tuple[float, float, float],
    *,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    after: Callable[[], None] = lambda: None,
) -> nn.Module:
    """Trains `network` in place by SGD on `batches`; returns it in eval mode.

    `hyperparameters`: learning rate, momentum, weight decay. `loss(logits, labels)` is minimized,
    by default cross-entropy; `after` is called after each step. Raises DivergedError if a
    loss is not finite.
    """
    lr, momentum, decay = hyperparameters
    loss = F.cross_entropy if loss is None else loss
    sgd = torch.optim.SGD(network.parameters(), lr=lr, momentum=momentum, weight_decay=decay)
    network.train()
    with torch.enable_grad():
        for images, labels in batches:
            value = loss(network(images), labels)
            descend(sgd, value, "the training loss of the defense")
            after()
    return network.eval()
