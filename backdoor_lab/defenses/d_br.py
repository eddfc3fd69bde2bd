"""D-BR: what is sensitive to a transformation is unlearned, what is not is relearned."""

from __future__ import annotations

from backdoor_lab.core import checks, streams
from backdoor_lab.core.errors import ConfigError, Diverged
from backdoor_lab.core.lazy import F, Tensor, nn, torch
from backdoor_lab.defenses.material import Material
from backdoor_lab.defenses.networks import as_trained, features, train, training_batches
from backdoor_lab.defenses.unlearning import Unlearning
from backdoor_lab.numerics.layers import head

SHIFT = 0.2
"""How far an image is moved at most, in widths of the image."""


class DBr(Unlearning):
    """Splits the training set by how far a transformation moves an image's features, and unlearns.

    Chen, Wu, Wang, "Effective Backdoor Defense by Exploiting Sensitivity of Poisoned Samples",
    NeurIPS 2022, sections 4 and 5, D-BR. A network of its own is trained on the poisoned set for
    `first_epochs` passes without augmentation, so that it knows the trigger and little else. For
    each training image x its feature consistency towards transformations is |f(x) - f(t(x))|^2,
    f what goes into the last linear layer and t a random turn of up to 180° and shift of up to a
    fifth. The share `clean` of images that move least are taken for clean, the share `poison`
    that move most for poison, the others for neither; then the attacked network unlearns the one
    and relearns the other in turn, for `epochs` passes over both with rate `lr`.

    Reduced: the first network's classes are not drawn apart before its features are taken, and
    the last network stands, not the best one, which only a known trigger could tell. All numbers
    are the paper's; where less is poisoned than the share `poison`, clean images are unlearned
    too.
    """

    def __init__(
        self,
        *,
        first_epochs: int = 2,
        clean: float = 0.2,
        poison: float = 0.05,
        epochs: int = 20,
        lr: float = 0.0001,
    ) -> None:
        self.first_epochs = checks.whole("defense.first_epochs", first_epochs, low=1)
        self.clean = checks.number("defense.clean", clean, low=1e-9, below=1)
        self.poison = checks.number("defense.poison", poison, low=1e-9, below=1)
        if self.clean + self.poison > 1:
            raise ConfigError(
                f"`defense.clean` and `defense.poison` are shares of one set, got {clean:g} and"
                f" {poison:g}"
            )
        self.epochs = checks.whole("defense.epochs", epochs, low=0)
        self.lr = checks.number("defense.lr", lr, low=0)

    def check_network(self, network: nn.Module, features: int) -> None:
        head(network)

    def repair(self, material: Material) -> tuple[nn.Module, dict[str, object]]:
        everything = torch.arange(len(material.labels))
        batches = training_batches(
            material, everything, self.first_epochs, streams.DISTINGUISHING, augmented=False
        )
        first = train(material.fresh(0), batches, as_trained(material))
        order = sensitivity(first, material).sort(stable=True).indices
        # One image alone has no statistics.
        good = order[: max(2, round(self.clean * len(order)))]
        bad = order[-max(2, round(self.poison * len(order))) :]
        network = material.network()
        self.unlearn_in_turn(network, material, bad, good, self.epochs, self.lr)
        return network, {"clean": len(good), "poison": len(bad), "of": len(order)}


def sensitivity(network: nn.Module, material: Material) -> Tensor:
    """How far a random turn and shift move each training image's features, squared: float64
    (n,)."""
    n = len(material.labels)
    generator = material.generator(streams.TRANSFORMATION)

    def plain(start: int, stop: int) -> Tensor:
        return material.images(torch.arange(start, stop), None)

    def moved(start: int, stop: int) -> Tensor:
        images = plain(start, stop)
        turns = torch.rand(len(images), generator=generator) * 2 - 1
        shifts = torch.rand(len(images), 2, generator=generator) * 2 - 1
        return transformed(images, 180 * turns, SHIFT * shifts)

    change = features(network, plain, n) - features(network, moved, n)
    change = change.square().sum(dim=1)
    if not bool(torch.isfinite(change).all()):
        raise Diverged("features are not finite: they cannot be compared")
    return change


def transformed(images: Tensor, degrees: Tensor, shifts: Tensor) -> Tensor:
    """`images` (n, C, H, W), each turned by `degrees` (n,) and then shifted by `shifts` (n, 2) of
    its width and height: float, the nearest pixel, 0 where there was none."""
    turn = degrees.deg2rad()
    cos, sin, flat = turn.cos(), turn.sin(), images.shape[2] / images.shape[3]
    # From each new place to the old one, in half widths: the shift is undone, then the turn.
    rows = [torch.stack([cos, flat * sin], dim=1), torch.stack([-sin / flat, cos], dim=1)]
    back = torch.stack(rows, dim=1)
    start = -2 * back @ shifts[:, :, None]
    where = torch.cat([back, start], dim=2).to(images.device)
    grid = F.affine_grid(where, list(images.shape), align_corners=False)
    return F.grid_sample(images.float(), grid, mode="nearest", align_corners=False)
