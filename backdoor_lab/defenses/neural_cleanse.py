"""Neural Cleanse: finds, for each class, the smallest patch that causes its prediction."""

from __future__ import annotations

from dataclasses import dataclass

from backdoor_lab.core import streams, validation
from backdoor_lab.core.lazy import F, Tensor, nn, torch
from backdoor_lab.core.progress import track
from backdoor_lab.defenses.context import DefenseContext
from backdoor_lab.defenses.networks import ModelRepair, clean_batches, clean_of, train
from backdoor_lab.numerics.descent import descend

SURE = 0.99
ROUND = 10
"""Number of steps between updates of the best trigger and of λ."""


@dataclass(frozen=True)
class Reversed:
    """A trigger reversed for a class: x becomes (1 - mask) · x + mask · pattern. `mask` float
    (1, H, W) in 0..1; `pattern` (C, H, W) in 0..255; `success`, the share of clean images
    classified as the class during the search."""

    mask: Tensor
    pattern: Tensor
    success: float

    def __call__(self, images: Tensor) -> Tensor:
        """Triggered copies of `images` (n, C, H, W), float."""
        return (1 - self.mask) * images.float() + self.mask * self.pattern

    @property
    def size(self) -> float:
        """The mask's l1 norm, in pixels."""
        return float(self.mask.sum())


class NeuralCleanse(ModelRepair):
    """Reverses a trigger for each class, and unlearns the smallest if it is an outlier.

    Wang, Yao, Shan, Li, Viswanath, Zheng, Zhao, "Neural Cleanse: Identifying and Mitigating
    Backdoor Attacks in Neural Networks", IEEE S&P 2019, sections IV and VI. For each class, mask
    and pattern minimize cross-entropy + λ |mask| on held-out clean images by `steps` steps of Adam,
    starting from a half-transparent gray pattern. Every ten steps λ is increased if at least 99 %
    of their images were classified as the class, and decreased otherwise; the smallest mask that
    reached 99 % is kept. A class is suspicious if its mask size is below the median with an anomaly
    index |size - median| / (1.4826 MAD) above `threshold`. The model is then trained by SGD for
    `epochs` with learning rate `lr` on the clean images, of which a fraction `patched_ratio`
    carries the smallest suspicious trigger with the true label. If no class is suspicious, the
    model is unchanged.

    `threshold` and `patched_ratio` are the paper's. The paper trains for one epoch on a tenth of
    the training set; this one trains for ten on the fewer held-out images. The authors' code takes
    up to 31,000 steps per class, with λ = 0 until the trigger succeeds.

    The notes have the mask size and anomaly index of every class, and the detected `target`.
    """

    def __init__(
        self,
        *,
        steps: int = 300,
        threshold: float = 2.0,
        patched_ratio: float = 0.2,
        epochs: int = 10,
        lr: float = 0.01,
    ) -> None:
        self.steps = validation.whole("defense.steps", steps, low=1)
        self.threshold = validation.number("defense.threshold", threshold, low=0)
        self.patched_ratio = validation.number(
            "defense.patched_ratio", patched_ratio, low=0, below=1 + 1e-9
        )
        self.epochs = validation.whole("defense.epochs", epochs, low=0)
        self.lr = validation.number("defense.lr", lr, low=0)

    def repair(self, context: DefenseContext) -> tuple[nn.Module, dict[str, object]]:
        network = context.network()
        labels = track(range(len(context.classes)), "class")
        found = [reverse(network, context, label, self.steps) for label in labels]
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
        draw = context.generator(streams.PATCHED)

        def patched(images: Tensor) -> Tensor:
            chosen = torch.rand(len(images), 1, 1, 1, generator=draw) < self.patched_ratio
            return torch.where(chosen.to(images.device), trigger(images), images.float())

        batches = (
            (patched(images), labels)
            for images, labels in clean_batches(context, self.epochs, streams.UNLEARNING)
        )
        train(
            network, batches,
            (self.lr, context.hyperparameters.momentum, context.hyperparameters.weight_decay),
        )  # fmt: skip


def reverse(network: nn.Module, context: DefenseContext, label: int, steps: int) -> Reversed:
    """The smallest trigger found that makes the model predict `label` for clean images."""
    clean, size = clean_of(context), context.hyperparameters.batch_size
    channels, height, width = clean.shape
    generator = context.generator(streams.REVERSED, label)
    values = torch.zeros(1 + channels, height, width, device=context.device, requires_grad=True)
    adam = torch.optim.Adam([values], lr=0.1, betas=(0.5, 0.9))
    weight, best, followed = 1e-3, None, []
    for step in track(range(1, steps + 1), "step"):
        chosen = torch.randint(len(clean), (min(size, len(clean)),), generator=generator)
        with torch.enable_grad():
            trigger = _trigger(values)
            outputs = network(trigger(clean.images[chosen].to(context.device)))
            wanted = torch.full((len(outputs),), label, device=outputs.device)
            loss = F.cross_entropy(outputs, wanted) + weight * trigger.mask.sum()
        descend(adam, loss, "the loss of a reversed trigger")
        followed.append(float((outputs.argmax(dim=1) == label).double().mean()))
        if step % ROUND == 0 or step == steps:
            success = sum(followed) / len(followed)
            current = Reversed(trigger.mask.detach(), trigger.pattern.detach(), success)
            if best is None or better(current, best):
                best = current
            weight, followed = weight * (1.5 if success >= SURE else 1.5**-1.5), []
    assert best is not None
    return best


def better(one: Reversed, other: Reversed) -> bool:
    """Compares success at SURE, then the mask size if both succeed, else the success rate."""
    if (one.success >= SURE) != (other.success >= SURE):
        return one.success >= SURE
    return one.size < other.size if one.success >= SURE else one.success > other.success


def anomaly(sizes: list[float]) -> list[float]:
    """How far each of `sizes` is below the median, in units of 1.4826 MAD (consistent with a
    standard deviation); negative above the median. Finite even if most sizes are equal."""
    x = torch.tensor(sizes, dtype=torch.float64)
    below = x.quantile(0.5) - x
    mad = below.abs().quantile(0.5).clamp(min=1e-6 * float(x.max()) + 1e-12)
    index: list[float] = (below / (1.4826 * mad)).tolist()
    return index


def _trigger(values: Tensor) -> Reversed:
    squashed = (values.tanh() + 1) / 2
    return Reversed(squashed[:1], 255 * squashed[1:], 0.0)
