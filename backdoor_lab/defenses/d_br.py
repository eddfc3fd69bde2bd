"""D-BR: unlearns images that are sensitive to transformations, relearns insensitive ones."""

from __future__ import annotations

from backdoor_lab.core import streams, validation
from backdoor_lab.core.errors import ConfigError, DivergedError
from backdoor_lab.core.lazy import F, Tensor, nn, torch
from backdoor_lab.defenses.context import DefenseContext
from backdoor_lab.defenses.networks import as_trained, features, train, training_batches
from backdoor_lab.defenses.unlearning import Unlearning
from backdoor_lab.numerics.layers import head

SHIFT = 0.2
"""Largest shift of an image, relative to its size."""


class DBR(Unlearning):
    """Unlearns the training images whose features change most under transformations.

    D-BR of Chen, Wu, Wang, "Effective Backdoor Defense by Exploiting Sensitivity of Poisoned
    Samples", NeurIPS 2022, sections 4 and 5. A separate model is trained on the poisoned set for
    `first_epochs` without augmentation, so that it learns little but the trigger. The feature
    consistency of a training image x is |f(x) - f(t(x))|^2, with f the input of the last linear
    layer and t a random rotation by up to 180° and shift by up to a fifth. The fraction
    `clean_ratio` of images with the smallest change is taken as clean, the fraction `poison_ratio`
    with the largest as poison. For `epochs` passes with learning rate `lr`, the attacked model then
    alternately unlearns the poison and relearns the clean images.

    Simplified: the first model is not fine-tuned to reduce intra-class distances (10 epochs in
    the authors' code), uses the recipe's learning rate (theirs: 0.01), and the last model is
    kept, since selecting the best requires the trigger. The other defaults are the paper's. If
    less than the fraction `poison_ratio` is poisoned, clean images are unlearned too.
    """

    def __init__(
        self,
        *,
        first_epochs: int = 2,
        clean_ratio: float = 0.2,
        poison_ratio: float = 0.05,
        epochs: int = 20,
        lr: float = 0.0001,
    ) -> None:
        self.first_epochs = validation.whole("defense.first_epochs", first_epochs, low=1)
        self.clean_ratio = validation.number("defense.clean_ratio", clean_ratio, low=1e-9, below=1)
        self.poison_ratio = validation.number(
            "defense.poison_ratio", poison_ratio, low=1e-9, below=1
        )
        if self.clean_ratio + self.poison_ratio > 1:
            raise ConfigError(
                f"`defense.clean_ratio` and `defense.poison_ratio` are shares of one set, got"
                f" {clean_ratio:g} and {poison_ratio:g}"
            )
        self.epochs = validation.whole("defense.epochs", epochs, low=0)
        self.lr = validation.number("defense.lr", lr, low=0)

    def check_network(self, network: nn.Module, features: int) -> None:
        head(network)

    def repair(self, context: DefenseContext) -> tuple[nn.Module, dict[str, object]]:
        everything = torch.arange(len(context.labels))
        batches = training_batches(
            context, everything, self.first_epochs, streams.DISTINGUISHING, augmented=False
        )
        first = train(context.fresh(0), batches, as_trained(context))
        order = sensitivity(first, context).sort(stable=True).indices
        # Batch statistics need at least two images.
        good = order[: max(2, round(self.clean_ratio * len(order)))]
        bad = order[-max(2, round(self.poison_ratio * len(order))) :]
        network = context.network()
        self.unlearn_in_turn(network, context, bad, good, self.epochs, self.lr)
        return network, {"clean": len(good), "poison": len(bad), "of": len(order)}


def sensitivity(network: nn.Module, context: DefenseContext) -> Tensor:
    """Squared change of each training image's features under a random rotation and shift:
    float64 (n,). Raises DivergedError if features are not finite."""
    n = len(context.labels)
    generator = context.generator(streams.TRANSFORMATION)

    def plain(start: int, stop: int) -> Tensor:
        return context.images(torch.arange(start, stop), None)

    def moved(start: int, stop: int) -> Tensor:
        images = plain(start, stop)
        turns = torch.rand(len(images), generator=generator) * 2 - 1
        shifts = torch.rand(len(images), 2, generator=generator) * 2 - 1
        return transformed(images, 180 * turns, SHIFT * shifts)

    change = features(network, plain, n) - features(network, moved, n)
    change = change.square().sum(dim=1)
    if not bool(torch.isfinite(change).all()):
        raise DivergedError("features are not finite: they cannot be compared")
    return change


def transformed(images: Tensor, degrees: Tensor, shifts: Tensor) -> Tensor:
    """Float `images` (n, C, H, W), rotated by `degrees` (n,), then shifted by `shifts` (n, 2) of
    their width and height; nearest-neighbor sampling, zero padding."""
    turn = degrees.deg2rad()
    cos, sin, flat = turn.cos(), turn.sin(), images.shape[2] / images.shape[3]
    # Maps new to old positions, in half widths: undoes the shift, then the rotation.
    rows = [torch.stack([cos, flat * sin], dim=1), torch.stack([-sin / flat, cos], dim=1)]
    back = torch.stack(rows, dim=1)
    start = -2 * back @ shifts[:, :, None]
    where = torch.cat([back, start], dim=2).to(images.device)
    grid = F.affine_grid(where, list(images.shape), align_corners=False)
    return F.grid_sample(images.float(), grid, mode="nearest", align_corners=False)
