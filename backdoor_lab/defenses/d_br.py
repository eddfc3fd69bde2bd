"""D-BR: unlearns images that are sensitive to transformations, and relearns insensitive ones."""

from __future__ import annotations

import math

from backdoor_lab.core import streams, validation
from backdoor_lab.core.errors import ConfigError, DivergedError
from backdoor_lab.core.lazy import F, Tensor, nn, torch
from backdoor_lab.core.progress import track
from backdoor_lab.defenses.context import DefenseContext
from backdoor_lab.defenses.networks import ModelRepair, features
from backdoor_lab.defenses.passes import Passes, PassSettings, in_random_order, opposed
from backdoor_lab.numerics.layers import PENULTIMATE, FeatureHook, head

SETTINGS = PassSettings(batch_size=128, momentum=0.9, weight_decay=5e-4)
COSINE_EPOCHS = 100
"""Number of epochs after which the learning rate of the separate model would reach zero."""
DEGREES = 180
"""Largest rotation of an image."""
SHIFT = 0.2
"""Largest shift of an image, relative to its size."""


class DBR(ModelRepair):
    """Unlearns the training images whose features change most under transformations.

    D-BR of Chen, Wu, Wang, "Effective Backdoor Defense by Exploiting Sensitivity of Poisoned
    Samples", NeurIPS 2022, sections 4 and 5. A separate model is trained on the poisoned set for
    `first_epochs` without augmentation, so that it learns little but the trigger, and fine-tuned
    for `tuning_epochs` with the intra-class loss (`center_similarity`). The learning rate of this
    model starts at `first_lr` and follows a cosine schedule over 100 epochs. The change of a
    training image x (the paper's feature consistency) is the mean of (f(x) - f(t(x)))², where f is
    the input of the last linear layer and t is a random rotation by up to 180°, followed by a
    random shift by up to a fifth of the image size. The fraction `clean_ratio` of images with the
    smallest change is taken as clean, the fraction `poison_ratio` with the largest change as
    poison. For `epochs` passes with learning rate `lr`, the attacked model then alternately
    unlearns the poison and relearns the clean images, with the recipe's augmentation.

    All numbers are those of the authors' code, including batch size 128, momentum 0.9 and weight
    decay 5e-4, regardless of the recipe. The authors' code keeps the model with the best accuracy
    minus ASR on test images, which requires the trigger; here the last model is kept. If less than
    the fraction `poison_ratio` of the set is poisoned, clean images are unlearned too.
    """

    needs_clean = False

    def __init__(
        self,
        *,
        first_epochs: int = 2,
        first_lr: float = 0.01,
        tuning_epochs: int = 10,
        clean_ratio: float = 0.2,
        poison_ratio: float = 0.05,
        epochs: int = 20,
        lr: float = 0.0001,
    ) -> None:
        self.first_epochs = validation.whole("defense.first_epochs", first_epochs, low=1)
        self.first_lr = validation.number("defense.first_lr", first_lr, low=0)
        self.tuning_epochs = validation.whole("defense.tuning_epochs", tuning_epochs)
        self.clean_ratio = validation.number("defense.clean_ratio", clean_ratio, low=1e-9, below=1)
        self.poison_ratio = validation.number(
            "defense.poison_ratio", poison_ratio, low=1e-9, below=1
        )
        if self.clean_ratio + self.poison_ratio > 1:
            raise ConfigError(
                f"`defense.clean_ratio` and `defense.poison_ratio` must sum to at most 1, got"
                f" {clean_ratio:g} and {poison_ratio:g}"
            )
        self.epochs = validation.whole("defense.epochs", epochs, low=0)
        self.lr = validation.number("defense.lr", lr, low=0)

    def check_network(self, network: nn.Module, features: int) -> None:
        head(network)

    def repair(self, context: DefenseContext) -> tuple[nn.Module, dict[str, object]]:
        change = sensitivity(self.distinguishing(context), context)
        good, bad = separated(change, self.clean_ratio, self.poison_ratio)
        network = context.network()
        self.unlearn_in_turn(Passes(network, context, SETTINGS), bad, good)
        return network, {"clean": len(good), "poison": len(bad), "of": len(change)}

    def distinguishing(self, context: DefenseContext) -> nn.Module:
        """Trains a separate model whose features distinguish poison from clean images, and returns
        the model."""
        everything = torch.arange(len(context.labels))
        order = context.generator(streams.DISTINGUISHING, streams.ORDER)
        network = context.fresh(0)
        passes = Passes(network, context, SETTINGS)
        for number in track(range(self.first_epochs), "epoch"):
            lr = cosine(self.first_lr, number)
            passes.over(in_random_order(everything, order), lr, F.cross_entropy)
        double_statistics(network)
        with FeatureHook(network, PENULTIMATE) as tap:
            for number in track(range(self.tuning_epochs), "epoch"):
                lr = cosine(self.first_lr, self.first_epochs + number)
                passes.over(
                    in_random_order(everything, order),
                    lr,
                    lambda _, labels: center_similarity(tap.values, labels),
                )
        return network

    def unlearn_in_turn(self, passes: Passes, bad: Tensor, good: Tensor) -> None:
        """In each round, maximizes the cross-entropy of the training images at indices `bad`, then
        minimizes that of `good`."""
        context = passes.context
        for number in track(range(self.epochs), "round"):
            for where, sign, loss in ((bad, -1.0, opposed), (good, 1.0, F.cross_entropy)):
                purpose = streams.unlearning_pass(number, sign)
                order = in_random_order(where, context.generator(purpose, streams.ORDER))
                augment = context.generator(purpose, streams.AUGMENTATION, device=context.device)
                passes.over(order, self.lr, loss, augment)


def cosine(lr: float, epoch: int) -> float:
    """Returns the learning rate of the separate model in epoch `epoch`, counted from 0."""
    return lr * (1 + math.cos(math.pi * epoch / COSINE_EPOCHS)) / 2


def center_similarity(values: Tensor, labels: Tensor) -> Tensor:
    """Returns the intra-class loss of the authors' code: the cosine similarity of the mean features
    of two classes, averaged over all ordered pairs of classes, where pairs of a class with itself
    count as 0. `values` (n, d) are the features, `labels` (n,) the classes."""
    centers = torch.stack([values[labels == y].mean(dim=0) for y in labels.unique()])
    centers = F.normalize(centers, dim=1)
    own = torch.eye(len(centers), dtype=torch.bool, device=values.device)
    return (centers @ centers.T).masked_fill(own, 0).mean()


def double_statistics(network: nn.Module) -> None:
    """Makes each update of the running statistics equal to two updates with the same batch, because
    the authors' code runs each batch of the fine-tuning through the model twice."""
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) and module.momentum is not None:
            module.momentum = 1 - (1 - module.momentum) ** 2


def sensitivity(network: nn.Module, context: DefenseContext) -> Tensor:
    """Returns the mean squared change of each training image's features under a random rotation and
    shift: float64 (n,). Raises DivergedError if features are not finite."""
    n = len(context.labels)
    generator = context.generator(streams.TRANSFORMATION)

    def plain(start: int, stop: int) -> Tensor:
        return context.images(torch.arange(start, stop), None)

    def moved(start: int, stop: int) -> Tensor:
        images = plain(start, stop)
        turns = torch.rand(len(images), generator=generator) * 2 - 1
        shifts = torch.rand(len(images), 2, generator=generator) * 2 - 1
        return transformed(images, DEGREES * turns, SHIFT * shifts)

    change = features(network, plain, n) - features(network, moved, n)
    change = change.square().mean(dim=1)
    if not bool(torch.isfinite(change).all()):
        raise DivergedError("features are not finite: they cannot be compared")
    return change


def separated(change: Tensor, clean_ratio: float, poison_ratio: float) -> tuple[Tensor, Tensor]:
    """Returns the int64 indices of the images with the smallest `change` (n,), taken as clean, and
    of those with the largest change, taken as poison.

    Each ratio determines a threshold. An image counts as clean if its change is at most the
    threshold for clean images. Of the other images, those whose change is at least the threshold
    for poison count as poison. Each threshold is chosen such that at least two of all images
    satisfy it, since batch normalization needs two.
    """
    n, ordered = len(change), change.sort().values
    low = ordered[max(1, int(clean_ratio * n))]
    high = ordered[n - max(2, int(poison_ratio * n))]
    clean = change <= low
    return clean.nonzero().flatten(), (~clean & (change >= high)).nonzero().flatten()


def transformed(images: Tensor, degrees: Tensor, shifts: Tensor) -> Tensor:
    """Returns float `images` (n, C, H, W), rotated by `degrees` (n,), then shifted by the fractions
    `shifts` (n, 2) of their width and height. Sampling is nearest-neighbor, so shifts are by whole
    pixels. Pixels from outside the image are zero."""
    turn = degrees.deg2rad()
    cos, sin, flat = turn.cos(), turn.sin(), images.shape[2] / images.shape[3]
    zero, one = torch.zeros_like(cos), torch.ones_like(cos)
    # Affine maps from new to old positions, in units of half the width and half the height.
    turned = sampled(images.float(), [[cos, flat * sin, zero], [-sin / flat, cos, zero]])
    x, y = shifts.unbind(dim=1)
    return sampled(turned, [[one, zero, -2 * x], [zero, one, -2 * y]])


def sampled(images: Tensor, back: list[list[Tensor]]) -> Tensor:
    """Resamples each of `images` (n, C, H, W) with a separate affine map from output positions to
    input positions. `back` has 2 rows of 3 coefficients, each a tensor (n,)."""
    where = torch.stack([torch.stack(row, dim=1) for row in back], dim=1).to(images.device)
    grid = F.affine_grid(where, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="nearest", align_corners=False)
