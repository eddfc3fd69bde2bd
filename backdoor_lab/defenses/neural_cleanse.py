"""Neural Cleanse: for each class, finds the smallest trigger that makes the model predict it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from backdoor_lab.core import streams, validation
from backdoor_lab.core.lazy import F, Tensor, nn, torch
from backdoor_lab.core.progress import track
from backdoor_lab.defenses.context import DefenseContext
from backdoor_lab.defenses.networks import ModelRepair, clean_batches, clean_of, train
from backdoor_lab.numerics.descent import descend

SURE = 0.99
"""Success rate at or above which a step of the search counts as successful."""
FIRST_WEIGHT = 1e-3
UP = 2.0
DOWN = 2.0**1.5
PATIENCE = 5
STOP_PATIENCE = 5 * PATIENCE
SEARCH_LR = 0.1
BETAS = (0.5, 0.9)
EPS = 1e-7
"""The epsilon of Adam, and the margin that keeps the inverse of tanh finite."""


@dataclass(frozen=True)
class Reversed:
    """A reverse-engineered trigger of one class: x becomes (1 - mask) · x + mask · pattern. `mask`
    float (1, H, W) in 0..1; `pattern` (C, H, W) in 0..255."""

    mask: Tensor
    pattern: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        """Returns triggered copies of `images` (n, C, H, W), as floats."""
        return (1 - self.mask) * images.float() + self.mask * self.pattern

    @property
    def size(self) -> float:
        """The mask's l1 norm, in pixels."""
        return float(self.mask.detach().sum())


@dataclass(frozen=True)
class Search:
    """The length of a search: at most `steps` steps, each with `batches` batches of `batch_size`
    images."""

    steps: int
    batches: int
    batch_size: int


@dataclass
class MaskWeight:
    """The weight λ of the mask size. It is 0 until `PATIENCE` steps in a row succeed, and then
    becomes `FIRST_WEIGHT`. After that, `PATIENCE` successes in a row double it, and as many
    failures in a row divide it by 2^1.5. `raised` says whether it has been doubled, `lowered`
    whether it has been divided."""

    value: float = 0.0
    raised: bool = False
    lowered: bool = False
    _waited: int = 0
    _ups: int = 0
    _downs: int = 0

    def update(self, success: float) -> None:
        """Updates the weight, given the success rate of one step."""
        sure = success >= SURE
        self._waited = self._waited + 1 if sure and self.value == 0 else 0
        if self._waited >= PATIENCE:
            self.value, self._ups, self._downs = FIRST_WEIGHT, 0, 0
            self.raised = self.lowered = False
        self._ups, self._downs = (self._ups + 1, 0) if sure else (0, self._downs + 1)
        if self._ups >= PATIENCE:
            self.value, self._ups, self.raised = self.value * UP, 0, True
        elif self._downs >= PATIENCE:
            self.value, self._downs, self.lowered = self.value / DOWN, 0, True


@dataclass
class Smallest:
    """The trigger with the smallest mask among the successful steps, and the number of steps since
    it was found."""

    trigger: Reversed | None = None
    size: float = float("inf")
    unimproved: int = 0

    def update(self, trigger: Reversed, size: float, success: float) -> None:
        """Updates the smallest trigger, given the trigger after a step and the step's mean mask
        size and success rate."""
        improved = success >= SURE and size < self.size
        if improved:
            self.trigger, self.size = trigger, size
        self.unimproved = 0 if improved or self.trigger is None else self.unimproved + 1


class NeuralCleanse(ModelRepair):
    """Reverse-engineers a trigger for each class. Unlearns the smallest if its size is an outlier.

    Wang, Yao, Shan, Li, Viswanath, Zheng, Zhao, "Neural Cleanse: Identifying and Mitigating
    Backdoor Attacks in Neural Networks", IEEE S&P 2019, sections IV and VI. For each class, mask
    and pattern minimize cross-entropy + λ |mask| on held-out clean images by Adam, from a random
    start. A step is `batches_per_step` batches of `batch_size` images; it succeeds if at least 99 %
    of its images are classified as the class. After each of at most `steps` steps, λ changes as
    `MaskWeight` describes; the smallest mask of a successful step is kept, or the last mask if none
    succeeds. The search stops early if λ has been raised and lowered and the mask has not become
    smaller for 25 steps. A class is suspicious if its mask size is below the median and its anomaly
    index |size - median| / (1.4826 MAD) is above `threshold`.

    The model is then trained by SGD, with the momentum and weight decay of the recipe, for `epochs`
    with learning rate `lr` on the clean images. In each batch, a fraction `patched_ratio` of the
    images carries the smallest suspicious trigger and keeps the true label. If no class is
    suspicious, the model is unchanged.

    All numbers are the authors' except the length of the search, `steps` times `batches_per_step`:
    1,000 batches per class. The authors use up to 31,000 batches (1,000 steps of 31;
    `defense=neural_cleanse_authors`). The paper unlearns for one epoch on a tenth of the training
    set: with fewer held-out images, raise `epochs`. The paper does not give `lr`.

    The notes contain the mask size and anomaly index of every class, and the detected `target`.
    """

    needs_sgd = True

    def __init__(
        self,
        *,
        steps: int = 100,
        batches_per_step: int = 10,
        batch_size: int = 32,
        threshold: float = 2.0,
        patched_ratio: float = 0.2,
        epochs: int = 1,
        lr: float = 0.01,
    ) -> None:
        self.search = Search(
            validation.whole("defense.steps", steps, low=1),
            validation.whole("defense.batches_per_step", batches_per_step, low=1),
            validation.whole("defense.batch_size", batch_size, low=1),
        )
        self.threshold = validation.number("defense.threshold", threshold, low=0)
        self.patched_ratio = validation.number(
            "defense.patched_ratio", patched_ratio, low=0, below=1 + 1e-9
        )
        self.epochs = validation.whole("defense.epochs", epochs, low=0)
        self.lr = validation.number("defense.lr", lr, low=0)

    def repair(self, context: DefenseContext) -> tuple[nn.Module, dict[str, object]]:
        network = context.network()
        labels = track(range(len(context.classes)), "class")
        found = [reverse(network, context, label, self.search) for label in labels]
        sizes = [each.size for each in found]
        index = anomaly(sizes)
        suspects = [y for y in range(len(found)) if index[y] > self.threshold]
        notes: dict[str, object] = {
            "sizes": dict(zip(context.classes, sizes, strict=True)),
            "indices": dict(zip(context.classes, index, strict=True)),
            "target": None,
        }
        if suspects:
            target = min(suspects, key=lambda y: sizes[y])
            notes["target"] = context.classes[target]
            self._unlearn(network, context, found[target])
        return network, notes

    def _unlearn(self, network: nn.Module, context: DefenseContext, trigger: Reversed) -> None:
        given = replace(context.hyperparameters, batch_size=self.search.batch_size)
        context = replace(context, hyperparameters=given)
        draw = context.generator(streams.PATCHED)

        def patched(images: Tensor) -> Tensor:
            order = torch.randperm(len(images), generator=draw).view(-1, 1, 1, 1)
            chosen = order < round(self.patched_ratio * len(images))
            return torch.where(chosen.to(images.device), trigger(images), images.float())

        batches = (
            (patched(images), labels)
            for images, labels in clean_batches(context, self.epochs, streams.UNLEARNING)
        )
        train(network, batches, (self.lr, given.momentum, given.weight_decay))


def reverse(network: nn.Module, context: DefenseContext, label: int, search: Search) -> Reversed:
    """Returns the smallest trigger found that makes the model predict `label` for clean images."""
    clean = clean_of(context)
    generator = context.generator(streams.REVERSED, label)
    values = start(clean.shape, generator).to(context.device).requires_grad_()
    adam = torch.optim.Adam([values], lr=SEARCH_LR, betas=BETAS, eps=EPS)
    batches = endless(len(clean), search.batch_size, generator)
    weight, smallest = MaskWeight(), Smallest()
    for _ in track(range(search.steps), "step"):
        seen, hits, sizes = 0, 0, 0.0
        for _ in range(search.batches):
            images = clean.images[next(batches)].to(context.device)
            with torch.enable_grad():
                trigger = trigger_of(values)
                outputs = network(trigger(images))
                loss = objective(outputs, label, weight.value, trigger.mask)
            descend(adam, loss, "the loss of a reversed trigger")
            seen, hits = seen + len(images), hits + int((outputs.argmax(dim=1) == label).sum())
            sizes += trigger.size
        smallest.update(trigger_of(values.detach()), sizes / search.batches, hits / seen)
        if weight.raised and weight.lowered and smallest.unimproved >= STOP_PATIENCE:
            break
        weight.update(hits / seen)
    return smallest.trigger or trigger_of(values.detach())


def start(shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """Returns the parameters, float (1 + C, H, W), of a uniformly random mask and pattern."""
    channels, height, width = shape
    drawn = torch.rand(1 + channels, height, width, generator=generator, dtype=torch.float64)
    return ((drawn - 0.5) * (2 - EPS)).atanh().float()


def trigger_of(values: Tensor) -> Reversed:
    """Returns the trigger for the parameters `values` (1 + C, H, W): one channel for the mask, then
    those of the pattern."""
    squashed = values.tanh() / (2 - EPS) + 0.5
    return Reversed(squashed[:1], 255 * squashed[1:])


def objective(outputs: Tensor, label: int, weight: float, mask: Tensor) -> Tensor:
    """Returns the sum of the losses of all images, as in the authors' code. (Adam's updates hardly
    depend on the scale of the loss.)

    The loss of an image is the cross-entropy between the logits `outputs` (n, classes) and `label`,
    plus the product of `weight` and the mask size.
    """
    wanted = torch.full((len(outputs),), label, device=outputs.device)
    entropy = F.cross_entropy(outputs, wanted, reduction="sum")
    return entropy + len(outputs) * weight * mask.abs().sum()


def endless(n: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yields the indices 0..n-1 in batches of `size`, pass after pass, forever. Each pass has a new
    random order. The last batch of a pass may be smaller."""
    while True:
        yield from torch.randperm(n, generator=generator).split(size)


def anomaly(sizes: list[float]) -> list[float]:
    """Returns (median - size) / (1.4826 MAD) for each of `sizes`, where 1.4826 MAD estimates the
    standard deviation. The MAD has a positive lower bound, so that the results are finite even if
    most sizes are equal."""
    x = torch.tensor(sizes, dtype=torch.float64)
    below = x.quantile(0.5) - x
    mad = below.abs().quantile(0.5).clamp(min=1e-6 * float(x.max()) + 1e-12)
    index: list[float] = (below / (1.4826 * mad)).tolist()
    return index
