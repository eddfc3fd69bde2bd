"""What a defense gets that needs more than features: images, networks, clean data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from backdoor_lab.core import streams
from backdoor_lab.core.lazy import Tensor, nn, torch
from backdoor_lab.core.seeds import torch_generator
from backdoor_lab.core.streams import Stream
from backdoor_lab.core.types import Images

See: TypeAlias = "Callable[[Tensor, torch.Generator | None], Tensor]"
Augment: TypeAlias = "Callable[[Tensor, torch.Generator], Tensor]"


@dataclass(frozen=True)
class Practice:
    """How the attacked network was trained, as far as a defense's own trainings follow it."""

    epochs: int
    batch: int
    lr: float
    momentum: float
    weight_decay: float


@dataclass(frozen=True)
class Material:
    """What a defender has at hand who owns the training and its data, but not the truth.

    `labels` int64 (n,) are those of the training set; `images(where, None)` gives its images at
    positions `where` int64 (b,): uint8 (b, C, H, W) on `device`, as a trained network sees them;
    with a generator on `device` instead of None, augmented as in training. `augment` does the
    same to any uint8 images. `network()` gives a copy of the attacked network, `fresh(seed)` an
    untrained one of the same architecture and normalisation: modules on `device` in inference
    mode that take float or uint8 images in 0..255, normalise them themselves, give logits
    (b, classes) and can be trained on. `clean` are held-out clean images with their true labels,
    on the CPU; None for a defense that does not ask for them. Every random number comes from
    `generator`, so that a result depends on `seed` alone.
    """

    classes: tuple[str, ...]
    labels: Tensor
    images: See
    augment: Augment
    network: Callable[[], nn.Module]
    fresh: Callable[[int], nn.Module]
    practice: Practice
    seed: int
    clean: Images | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def generator(self, *what: Stream | int, device: torch.device | str = "cpu") -> torch.Generator:
        """A generator of its own for each purpose `what`, on the CPU unless told otherwise."""
        seed = torch_generator(self.seed, streams.DEFENSE, *what).initial_seed()
        return torch.Generator(device).manual_seed(seed)
