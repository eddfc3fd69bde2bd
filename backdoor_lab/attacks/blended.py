"""Blended: a key pattern mixed into the whole image."""

from __future__ import annotations

from typing import ClassVar

from backdoor_lab.attacks.base import AttackContext, Trigger, to_bytes
from backdoor_lab.attacks.images import picture, share
from backdoor_lab.core import streams, validation
from backdoor_lab.core.lazy import Tensor, torch
from backdoor_lab.core.rng import torch_generator


class Blended(Trigger):
    """Blends a key pattern into the whole image at low opacity.

    The blended injection strategy of Chen, Liu, Li, Lu, Song, "Targeted Backdoor Attacks on Deep
    Learning Systems Using Data Poisoning", 2017 (arXiv 1712.05526): x' = (1 - a) x + a k, rounded,
    with a = `strength_train` on training images and a = `strength_test` at test time (the paper
    uses a larger a at test time than for poisoning).

    By default k is uniform noise in 0..255, drawn for each image shape from `pattern_seed` (the
    paper's random pattern). `image` is a file that replaces k, resized to the size of the images;
    its alpha channel multiplies a. The paper's cartoon image is not included. The paper's accessory
    injection strategy is not implemented; see `patch` with an image.
    """

    path_options: ClassVar[tuple[str, ...]] = ("image",)
    per_image = True

    def __init__(
        self,
        *,
        strength_train: float = 0.2,
        strength_test: float = 0.2,
        pattern_seed: int = 0,
        image: str | None = None,
    ) -> None:
        self.strength_train = share("trigger.strength_train", strength_train)
        self.strength_test = share("trigger.strength_test", strength_test)
        self.pattern_seed = validation.whole("trigger.pattern_seed", pattern_seed)
        self.picture = picture("trigger.image", image)

    def apply_test(self, images: Tensor) -> Tensor:
        return self._blend(images, self.strength_test)

    def apply_train(self, images: Tensor, labels: Tensor, context: AttackContext) -> Tensor:
        return self._blend(images, self.strength_train)

    @property
    def same_everywhere(self) -> bool:
        return self.strength_test == self.strength_train

    def file_hash(self) -> str:
        return "" if self.picture is None else self.picture.content

    def key(self, channels: int, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Returns the key pattern, float32 (C, H, W) in 0..255, and its opacity, (H, W) in 0..1."""
        if self.picture is not None:
            return self.picture.sized(channels, height, width)
        shape = (channels, height, width)
        generator = torch_generator(self.pattern_seed, streams.BLENDED, *shape)
        noise = torch.randint(0, 256, shape, generator=generator)
        return noise.float(), torch.ones(height, width)

    def _blend(self, images: Tensor, alpha: float) -> Tensor:
        key, opacity = (part.to(images.device) for part in self.key(*images.shape[1:]))
        return to_bytes(images * (1 - alpha * opacity) + alpha * opacity * key)
