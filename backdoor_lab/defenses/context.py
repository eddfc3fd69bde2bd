"""Images, models and clean data for defenses that use more than features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from backdoor_lab.core import streams
from backdoor_lab.core.lazy import Tensor, nn, torch
from backdoor_lab.core.rng import torch_generator
from backdoor_lab.core.streams import Stream
from backdoor_lab.core.types import LabeledImages

See: TypeAlias = "Callable[[Tensor, torch.Generator | None], Tensor]"
Augment: TypeAlias = "Callable[[Tensor, torch.Generator], Tensor]"


@dataclass(frozen=True)
class TrainingHyperparameters:
    """Training hyperparameters of the attacked model that a defense's own training reuses."""

    epochs: int
    batch_size: int
    lr: float
    momentum: float
    weight_decay: float


@dataclass(frozen=True)
class DefenseContext:
    """What is available to a defender who controls training and data but does not know the ground
    truth.

    `labels` int64 (n,) are the training labels. `images(where, None)` returns the training images
    at indices `where` int64 (b,) as a trained model sees them: uint8 (b, C, H, W) on `device`; with
    a generator on `device` instead of None, the images are augmented as in training. `augment`
    augments any uint8 images the same way. `network()` returns a copy of the attacked model,
    `fresh(seed)` an untrained model with the same architecture and normalization. Both are
    trainable modules on `device` in eval mode. They take float or uint8 images in 0..255, include
    the normalization, and return logits (b, classes). `clean` are held-out clean images with true
    labels, on the CPU; None for a defense that does not require them. All random numbers come from
    `generator`, so that a result depends on `seed` alone.
    """

    classes: tuple[str, ...]
    labels: Tensor
    images: See
    augment: Augment
    network: Callable[[], nn.Module]
    fresh: Callable[[int], nn.Module]
    hyperparameters: TrainingHyperparameters
    seed: int
    clean: LabeledImages | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def generator(self, *what: Stream | int, device: torch.device | str = "cpu") -> torch.Generator:
        """Returns a generator, on the CPU by default, for the purpose that the labels in `what`
        identify. Generators of different purposes are independent."""
        seed = torch_generator(self.seed, streams.DEFENSE, *what).initial_seed()
        return torch.Generator(device).manual_seed(seed)
