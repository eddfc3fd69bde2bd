"""Adaptive-Blend: training images show pieces of a pattern, test images show all of it."""

from __future__ import annotations

import hashlib

from backdoor_lab.attacks.base import AttackContext, Trigger, to_bytes
from backdoor_lab.attacks.images import file_bytes, not_an_image
from backdoor_lab.core import streams, validation
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.lazy import F, Tensor, torch
from backdoor_lab.core.rng import torch_generator
from backdoor_lab.core.streams import Stream
from backdoor_lab.data.decode import BrokenImageError, decode

BLOBS = 8
"""Height and width of the grid of random black and white squares that is enlarged to the default
pattern."""


class AdaptiveBlend(Trigger):
    """Blends a faint pattern into the image; each training image shows only some pieces of it.

    Adaptive-Blend of Qi, Xie, Li, Mahloujifar, Mittal, "Revisiting the Assumption of Latent
    Separability for Backdoor Defenses", ICLR 2023. With a pattern t, an opacity a and a binary
    mask m:

        x' = x + a · m · (t − x)

    The image is divided into `grid` × `grid` pieces. Each poisoned image and each cover image
    gets a = `strength_train` and its own random mask, which hides a fraction `mask_rate` of the
    pieces. Test images get a = `strength_test` and no mask.

    `image` is the path of an image file, resized to the size of the images; for grayscale images
    its channels are averaged. The paper's image (Hello Kitty) is not included. By default t is a
    smooth pattern: an interpolation of 8×8 random black and white squares per channel. The squares
    depend only on `pattern_seed` and not on the seed of the cell.
    """

    cover_rate = 1.0
    path_options = ("image",)

    def __init__(
        self,
        *,
        strength_train: float = 0.15,
        strength_test: float = 0.2,
        grid: int = 4,
        mask_rate: float = 0.5,
        image: str | None = None,
        pattern_seed: int = 0,
    ) -> None:
        self.strength_train = validation.number(
            "trigger.strength_train", strength_train, low=0, below=1
        )
        self.strength_test = validation.number(
            "trigger.strength_test", strength_test, low=0, below=1
        )
        self.grid = validation.whole("trigger.grid", grid, low=1, below=257)
        rate = validation.number("trigger.mask_rate", mask_rate, low=0, below=1)
        pieces = self.grid**2
        self.shown = pieces - round(rate * pieces)
        if self.shown < 1:
            raise ConfigError(
                f"`trigger.mask_rate`={rate:g} hides all {pieces} pieces of the pattern; give a"
                " smaller value"
            )
        self.pattern_seed = validation.whole("trigger.pattern_seed", pattern_seed)
        content = None if image is None else file_bytes("trigger.image", image)
        self.digest = "" if content is None else hashlib.sha256(content).hexdigest()
        self.picture = _blobs(self.pattern_seed) if content is None else _picture(content, image)

    def apply_test(self, images: Tensor) -> Tensor:
        return self._blend(images, self.strength_test, None)

    def apply_train(self, images: Tensor, labels: Tensor, context: AttackContext) -> Tensor:
        shown = self.drawn(images.shape, context, streams.POISON)
        return self.apply_drawn(images, shown)

    def apply_cover(self, images: Tensor, labels: Tensor, context: AttackContext) -> Tensor:
        shown = self.drawn(images.shape, context, streams.COVERS)
        return self.apply_drawn(images, shown)

    def drawn(self, shape: torch.Size, context: AttackContext, what: Stream) -> Tensor:
        """Returns which pieces each image shows: float32 (n, grid * grid), 1 for those shown and 0
        for those hidden."""
        generator = context.generator(streams.PIECES, what)
        order = torch.rand(shape[0], self.grid**2, generator=generator).argsort(dim=1)
        return torch.zeros(shape[0], self.grid**2).scatter_(1, order[:, : self.shown], 1.0)

    def apply_drawn(self, images: Tensor, drawn: Tensor) -> Tensor:
        return self._blend(images, self.strength_train, self._mask(images, drawn))

    def file_hash(self) -> str:
        return self.digest

    def check_image_size(self, channels: int, height: int, width: int) -> None:
        if min(height, width) < self.grid:
            raise ConfigError(
                f"`trigger`: images of {height}x{width} pixels cannot be cut into"
                f" {self.grid}x{self.grid} pieces; give a smaller trigger.grid"
            )

    def pattern(self, channels: int, height: int, width: int) -> Tensor:
        """Returns the whole pattern at the given size: float32 (channels, height, width) in
        0..255."""
        picture = self.picture.float()[None]
        size = (height, width)
        found = F.interpolate(picture, size, mode="bilinear", align_corners=False, antialias=True)
        return found[0].mean(dim=0, keepdim=True) if channels == 1 else found[0]

    def _blend(self, images: Tensor, alpha: float, mask: Tensor | None) -> Tensor:
        values = images.float()
        change = alpha * (self.pattern(*images.shape[1:]).to(images.device) - values)
        return to_bytes(values + (change if mask is None else mask * change))

    def _mask(self, images: Tensor, shown: Tensor) -> Tensor:
        """Returns a mask for each image: float32 (n, 1, H, W), 1 on the pieces that show the
        pattern and 0 on the hidden ones."""
        height, width = images.shape[2:]
        rows = torch.arange(height) * self.grid // height
        columns = torch.arange(width) * self.grid // width
        piece = rows[:, None] * self.grid + columns
        return shown[:, piece][:, None].to(images.device)


def _picture(content: bytes, image: str | None) -> Tensor:
    try:
        pixels = decode(content, f"`trigger.image` {image}", 3, None)
    except BrokenImageError as error:
        raise not_an_image("trigger.image", image, error.__cause__ or error) from error
    return torch.from_numpy(pixels.copy())


def _blobs(seed: int) -> Tensor:
    """Returns a grid of random black and white squares: uint8 (3, BLOBS, BLOBS)."""
    generator = torch_generator(seed, streams.BLEND_PATTERN)
    return torch.randint(0, 2, (3, BLOBS, BLOBS), generator=generator).to(torch.uint8) * 255
