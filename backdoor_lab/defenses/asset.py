"""ASSET: finds poison by its high loss in a model trained to unlearn outliers."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator

from backdoor_lab.core import streams, validation
from backdoor_lab.core.lazy import F, Tensor, nn, torch
from backdoor_lab.core.progress import track
from backdoor_lab.defenses.context import DefenseContext
from backdoor_lab.defenses.networks import ModelBasedFilter, SampleScores, clean_of, losses_at
from backdoor_lab.defenses.options import DEFAULTS, FilterOptions
from backdoor_lab.numerics.descent import descend
from backdoor_lab.numerics.layers import before_pooling
from backdoor_lab.returned import finite

OUTLYING = 2.0
"""Adjusted outlyingness above which an image is unlearned."""
WIDTH = 128
"""Width of the hidden layers of the network that distinguishes training images from clean ones."""
ITERATIONS = 100
"""Training iterations, two steps each, of this network, trained from scratch for each batch."""
MLP_LR = 1e-4
DENSITY = 1e-6
"""The loss threshold is derived from this density of a normal distribution that is fitted to the
lower half of the losses."""
VARIANCE_FLOOR = 1e-6
"""Added to the variance of the lower half of the losses."""

Part = tuple[Tensor, Tensor, Tensor, int]
"""Training images, their labels, clean images, and the seed of the network that distinguishes the
training images from the clean ones."""


class ASSET(ModelBasedFilter):
    """Removes images with a high loss in a model that was trained to unlearn outliers.

    Pan, Zeng, Lyu, Lin, Jia, "ASSET: Robust Backdoor Data Detection Across a Multiplicity of Deep
    Learning Paradigms", USENIX Security 2023, as in the authors' notebook. An untrained model of
    the attacked architecture takes two steps of Adam for each batch of the training set. The first
    decreases the variance of the logits of held-out clean images (see `offset`). The second
    increases the loss of some images of the batch. To select these images, a small network, trained
    from scratch for each batch, learns to distinguish the batch from the clean images by features
    of the attacked model (see `without_first_relu`). The images for which the outputs of the small
    network are outliers are unlearned. The first step cancels the effect of the second on clean
    images, but not on poison. The score of an image is its loss in the trained model.
    ``removal_budget=auto`` removes the images whose loss is at least `threshold`, but at most half
    of a class.

    The authors' code uses 1,000 clean images; here `protocol.clean_holdout` sets the number. The
    authors' code computes the losses of poisoned images, known from the ground truth, with batch
    statistics, and the losses of all other images with running statistics. A defender does not know
    the poison, so here all losses are computed with running statistics.
    """

    needs_clean = True

    def __init__(
        self,
        options: FilterOptions = DEFAULTS,
        *,
        epochs: int = 1,
        batch_size: int = 512,
        lr: float = 1e-4,
    ) -> None:
        super().__init__(options)
        self.epochs = validation.whole("defense.epochs", epochs, low=1)
        self.batch_size = validation.whole("defense.batch_size", batch_size, low=2)
        self.lr = validation.number("defense.lr", lr, low=0)

    def score_images(self, context: DefenseContext, where: Tensor) -> SampleScores:
        network = context.fresh(0)
        offset(network, context.network(), self.batches(context), self.lr)
        losses = losses_at(network, context, torch.arange(len(context.labels)))
        finite(losses, "losses")
        flagged = losses >= threshold(losses)
        return SampleScores(losses[where], flagged[where])

    def batches(self, context: DefenseContext) -> Iterator[Part]:
        """Yields each training image once per epoch, in random order and without augmentation. Each
        batch comes with `batch_size` clean images, drawn without replacement, or with all clean
        images if there are fewer."""
        clean, number = clean_of(context), 0
        order = context.generator(streams.OFFSET, streams.ORDER)
        generator = context.generator(streams.OFFSET)
        for _ in track(range(self.epochs), "epoch"):
            parts = torch.randperm(len(context.labels), generator=order).split(self.batch_size)
            for at in track(parts, "batch"):
                chosen = torch.randperm(len(clean), generator=generator)[: self.batch_size]
                seed = context.generator(streams.OFFSET, streams.WEIGHTS, number).initial_seed()
                labels = context.labels[at].to(context.device)
                known = clean.images[chosen].to(context.device)
                yield context.images(at, None), labels, known, seed
                number += 1


def offset(network: nn.Module, attacked: nn.Module, parts: Iterable[Part], lr: float) -> None:
    """Trains `network` in place with two steps of Adam for each element of `parts`.

    The first step decreases the variance of each clean image's logits, averaged over the images.
    The second increases the cross-entropy of outliers among the training images, and is omitted if
    there are no outliers. The two steps have separate optimizers. Features are computed by a copy
    of `attacked` without its first ReLU (see `without_first_relu`), with batch statistics.
    """
    attacked = without_first_relu(attacked)
    flattening, unlearning = (torch.optim.Adam(network.parameters(), lr=lr) for _ in range(2))
    attacked.train()
    network.train()
    with torch.enable_grad():
        for images, labels, clean, seed in parts:
            descend(flattening, network(clean).var(dim=1).mean(), "the variance of clean logits")
            inspected, known = before_pooling(attacked, images), before_pooling(attacked, clean)
            outputs = distinguished(new_mlp(inspected, seed), inspected, known)
            marked = (outlyingness(outputs) > OUTLYING).nonzero().flatten()
            if len(marked):
                # Batch normalization may reject a single image.
                marked = marked.repeat(2) if len(marked) == 1 else marked
                loss = -F.cross_entropy(network(images[marked]), labels[marked])
                descend(unlearning, loss, "the loss of unlearned images")
    network.eval()


def without_first_relu(network: nn.Module) -> nn.Module:
    """Returns a copy of `network`. If it contains a torchvision ResNet, the copy lacks the ReLU in
    front of its first stage.

    The authors' notebook makes a list of a ResNet's modules and drops the last one. The first ReLU
    is missing from that list, because their ResNet calls it as a function.
    """
    from torchvision.models import ResNet

    copied = copy.deepcopy(network)
    for module in copied.modules():
        if isinstance(module, ResNet):
            module.relu = nn.Identity()  # type: ignore[assignment]
    return copied


def new_mlp(features: Tensor, seed: int) -> nn.Module:
    """Returns an untrained network with two hidden layers that maps rows of `features` (n, d) to
    0..1, on the device of `features`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = (
            nn.Linear(features.shape[1], WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(),
            nn.Linear(WIDTH, 1), nn.Sigmoid(),
        )  # fmt: skip
    return nn.Sequential(*layers).to(features)


def distinguished(mlp: nn.Module, inspected: Tensor, clean: Tensor) -> Tensor:
    """Trains `mlp` to return 1 for the rows of `inspected` (n, d) and 0 for those of `clean` (m,
    d): the steps, which decrease the squared error, alternate between the two. Returns the outputs
    (n,) for `inspected`."""
    kinds = [
        (rows, wanted, torch.optim.Adam(mlp.parameters(), lr=MLP_LR))
        for rows, wanted in ((inspected, 1.0), (clean, 0.0))
    ]
    for _ in range(ITERATIONS):
        for rows, wanted, adam in kinds:
            error = (mlp(rows) - wanted).square().mean()
            descend(adam, error, "the error of the network that detects clean images")
    with torch.no_grad():
        outputs: Tensor = mlp(inspected).flatten()
    return outputs


def outlyingness(x: Tensor) -> Tensor:
    """Returns the adjusted outlyingness (n,) of `x` (n,) (Hubert and Vandervieren, Computational
    Statistics and Data Analysis, 2008).

    It is the distance of a value from the median, divided by the distance from the median to the
    whisker on the value's side, in a boxplot adjusted for skewness. NaN if both distances are 0.
    """
    x = x.double().cpu()
    middle = x.median()
    low, high = x.quantile(0.25), x.quantile(0.75)
    skewness = medcouple(x)
    below, above = (-4, 3) if skewness > 0 else (-3, 4)
    reach = 1.5 * (high - low)
    lower = low - reach * math.exp(below * skewness)
    upper = high + reach * math.exp(above * skewness)
    return torch.where(x > middle, (x - middle) / (upper - middle), (middle - x) / (middle - lower))


def medcouple(x: Tensor) -> float:
    """Returns the medcouple of `x` float64 (n,), a robust measure of skewness between -1 and 1.

    Brys, Hubert, Struyf, Journal of Computational and Graphical Statistics, 2004. Memory O(n^2).
    """
    z = x.sort().values
    z = z - z.quantile(0.5)
    lower, upper = z[z <= 0], z[z >= 0]
    kernel = (upper[:, None] + lower) / (upper[:, None] - lower)
    ties = int((z == 0).sum())
    if ties:
        # For pairs of values that both equal the median, the kernel is the sign of their distance
        # from the antidiagonal.
        i = torch.arange(ties)
        kernel[:ties, len(lower) - ties :] = (i[:, None] + i - (ties - 1)).sign().double()
    ordered = kernel.flatten().sort().values
    return float(ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def threshold(losses: Tensor) -> float:
    """Returns the threshold for `losses` float64 (n,): images with at least this loss are removed.

    With the mean m and the standard deviation s of the losses up to the median, and the density p =
    1e-6, the threshold is m + s sqrt(-2 ln(p) s sqrt(2 pi)), as in the authors' code. (This is not
    where the normal density equals p, which is at m + s sqrt(-2 ln(p s sqrt(2 pi))).)
    """
    lower = losses.sort().values
    lower = lower[lower <= lower[(len(lower) - 1) // 2]]
    spread = math.sqrt(float(lower.var(unbiased=False)) + VARIANCE_FLOOR)
    return float(lower.mean()) + spread * math.sqrt(
        -2 * math.log(DENSITY) * spread * math.sqrt(2 * math.pi)
    )
