"""Fine-tuning: trains all layers or the last layer of the attacked model on clean images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import ClassVar

from backdoor_lab.core import streams, validation
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.lazy import F, Tensor, nn, torch
from backdoor_lab.core.progress import track
from backdoor_lab.core.types import LabeledImages
from backdoor_lab.data.base import Source
from backdoor_lab.defenses.context import DefenseContext
from backdoor_lab.defenses.networks import Batch, ModelRepair, clean_of, logits
from backdoor_lab.numerics.descent import descend
from backdoor_lab.numerics.layers import head

LAYERS = ("all", "last")


class FineTuning(ModelRepair):
    """Fine-tunes the attacked model on clean images by SGD, as a user of public weights does.

    Wu, Chen, Zhang, Zhu, Wei, Yuan, Shen, "BackdoorBench: A Comprehensive Benchmark of Backdoor
    Learning", NeurIPS 2022: the baseline ``ft``. All default values are those of the authors' file
    ``config/defense/ft/cifar10.yaml``. The learning rate follows a cosine from `lr` to 0
    over `epochs` epochs. Images are augmented as in the recipe.

    With ``layers=all``, the model is in train mode: every weight is trained, and batch
    normalization normalizes by the statistics of each batch and updates its running statistics.
    With ``layers=last``, only the last linear layer is trained. All else is frozen: the model stays
    in eval mode, so that batch normalization uses its running statistics and does not change them.

    The clean images are held-out test images, or, with `data`, the training images of another data
    set with the same image size and the same class names in any order. Of these, at most
    `clean_images` are used, drawn at random and divided as evenly as possible among the classes
    (None: all). BackdoorBench uses 5 % of the training set. A last batch of a single image is left
    out of an epoch of several batches, because batch normalization needs more.
    """

    option_kinds: ClassVar[Mapping[str, type]] = {"data": Source}

    def __init__(
        self,
        *,
        layers: str = "all",
        epochs: int = 100,
        lr: float = 0.01,
        batch_size: int = 256,
        momentum: float = 0.9,
        weight_decay: float = 0.0005,
        clean_images: int | None = None,
        data: Source | None = None,
    ) -> None:
        self.layers = validation.choice("defense.layers", layers, LAYERS)
        self.epochs = validation.whole("defense.epochs", epochs, low=0)
        self.lr = validation.number("defense.lr", lr, low=0)
        self.batch_size = validation.whole("defense.batch_size", batch_size, low=2)
        self.momentum = validation.number("defense.momentum", momentum, low=0, below=1)
        self.weight_decay = validation.number("defense.weight_decay", weight_decay, low=0)
        self.clean_images = (
            None
            if clean_images is None
            else validation.whole("defense.clean_images", clean_images, low=2)
        )
        if data is not None and not isinstance(data, Source):
            raise ConfigError(
                f"`defense.data` must be a data set, got {data!r}: choose one with"
                " +dataset@defense.data=NAME, and set its options with defense.data.OPTION=VALUE"
            )
        self.data = data

    def check_network(self, network: nn.Module, features: int) -> None:
        if self.layers == "last":
            head(network)

    def repair(self, context: DefenseContext) -> tuple[nn.Module, dict[str, object]]:
        network, clean = context.network(), self._used(context)
        tuned = list((network if self.layers == "all" else head(network)).parameters())
        before = _accuracy(network, clean, context)
        self._train(network, tuned, clean, context)
        return network, {
            "images": len(clean),
            "tuned_parameters": sum(each.numel() for each in tuned),
            "accuracy_on_them": [before, _accuracy(network, clean, context)],
        }

    def _used(self, context: DefenseContext) -> LabeledImages:
        clean = clean_of(context)
        if self.clean_images is None:
            return clean
        order = torch.randperm(len(clean), generator=context.generator(streams.CLEAN_IMAGES))
        where = evenly(clean.labels, order, self.clean_images)
        return LabeledImages(clean.images[where], clean.labels[where], clean.classes)

    def _train(
        self, network: nn.Module, tuned: list[nn.Parameter], clean: LabeledImages,
        context: DefenseContext,
    ) -> None:  # fmt: skip
        sgd = torch.optim.SGD(
            tuned, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay
        )
        order = context.generator(streams.TUNING, streams.ORDER)
        augment = context.generator(streams.TUNING, streams.AUGMENTATION, device=context.device)
        network.train(self.layers == "all")
        with torch.enable_grad():
            for epoch in track(range(self.epochs), "epoch"):
                for group in sgd.param_groups:
                    group["lr"] = self.lr * (1 + math.cos(math.pi * epoch / self.epochs)) / 2
                for where in self._batches(len(clean), order):
                    images, labels = _batch(clean, where, context)
                    loss = F.cross_entropy(network(context.augment(images, augment)), labels)
                    descend(sgd, loss, "the loss of the fine-tuning")
        network.eval()

    def _batches(self, n: int, generator: torch.Generator) -> Iterator[Tensor]:
        parts = torch.randperm(n, generator=generator).split(self.batch_size)
        several = len(parts) > 1 and len(parts[-1]) == 1
        yield from track(parts[:-1] if several else parts, "batch")


def evenly(labels: Tensor, order: Tensor, most: int) -> Tensor:
    """Returns at most `most` of the indices in `order` int64 (n,), ascending: the first of every
    class, then the second of every class, and so on. `labels` int64 (n,)."""
    rank = torch.zeros_like(order)
    for label in labels.unique():
        members = order[labels[order] == label]
        rank[members] = torch.arange(len(members))
    return order[rank[order].argsort(stable=True)[:most]].sort().values


def _batch(clean: LabeledImages, where: Tensor, context: DefenseContext) -> Batch:
    return clean.images[where].to(context.device), clean.labels[where].to(context.device)


def _accuracy(network: nn.Module, clean: LabeledImages, context: DefenseContext) -> float:
    outputs = logits(network, lambda a, b: clean.images[a:b].to(context.device), len(clean))
    return float((outputs.argmax(dim=1) == clean.labels).double().mean())
