"""WaNet: a smooth warp as the trigger."""

from __future__ import annotations

from typing import ClassVar

from backdoor_lab.attacks.base import AttackContext, Trigger, to_bytes
from backdoor_lab.attacks.threat_model import ThreatModel
from backdoor_lab.core import streams, validation
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.lazy import F, Tensor, torch
from backdoor_lab.core.rng import torch_generator
from backdoor_lab.core.streams import Stream


class WaNet(Trigger):
    """Warps the image slightly with one fixed smooth field.

    Nguyen, Tran, "WaNet: Imperceptible Warping-Based Backdoor Attack", ICLR 2021, sections 3.2 to
    3.4. With pixel coordinates p in -1..1, and bilinear interpolation:

        x'(p) = x(clip((p + s M(p) / L) g, -1, 1))

    L is the image's height for rows and width for columns. M is a `grid` x `grid` field drawn
    uniformly from -1..1 with `pattern_seed`, divided by its mean absolute value and upsampled
    bicubically. `strength` is s and `rescale` is g. By default the mean displacement at the grid
    points, s (L - 1) / (2 L), is about a quarter of a pixel.

    Cover images (the paper's noise mode) are warped by the same field plus R / L, with R drawn
    uniformly from -1..1 for every image, pixel and axis, and keep their labels, so that the model
    must learn the trigger's exact field. Here the poison is made once, before training; in the
    paper the attacker controls training and redraws the poison for every batch.
    """

    cover_rate: ClassVar[float] = 2.0
    threat_model = ThreatModel(paper="controls training too")

    def __init__(
        self, *, grid: int = 4, strength: float = 0.5, rescale: float = 1.0, pattern_seed: int = 0
    ) -> None:
        self.grid = validation.whole("trigger.grid", grid, low=2, below=4097)
        self.strength = validation.number("trigger.strength", strength, low=0.01)
        self.rescale = validation.number("trigger.rescale", rescale, low=0.01)
        self.pattern_seed = validation.whole("trigger.pattern_seed", pattern_seed)

    def apply_test(self, images: Tensor) -> Tensor:
        where = self.field(*images.shape[2:])
        return to_bytes(sample(images, where[None].to(images.device)))

    def apply_cover(self, images: Tensor, labels: Tensor, context: AttackContext) -> Tensor:
        noise = self._noise(images.shape, context)
        return self.apply_drawn(images, noise)

    def drawn(self, shape: torch.Size, context: AttackContext, what: Stream) -> Tensor | None:
        """Returns the noise R of cover images: float32 (n, 2, H, W) in -1..1."""
        return self._noise(shape, context) if what == streams.COVERS else None

    def apply_drawn(self, images: Tensor, drawn: Tensor) -> Tensor:
        height, width = images.shape[2:]
        where = self.field(height, width) + drawn / _sides(height, width)
        return to_bytes(sample(images, where.to(images.device)))

    def field(self, height: int, width: int) -> Tensor:
        """Returns where each output pixel is sampled: float32 (2, H, W), row and column in
        -1..1."""
        generator = torch_generator(self.pattern_seed, streams.WARP)
        rough = torch.rand((1, 2, self.grid, self.grid), generator=generator).double() * 2 - 1
        rough = rough / rough.abs().mean()
        smooth = F.interpolate(rough, (height, width), mode="bicubic", align_corners=True)[0]
        bent = straight(height, width) + self.strength * smooth / _sides(height, width)
        return (bent * self.rescale).clamp(-1, 1).float()

    def _noise(self, shape: torch.Size, context: AttackContext) -> Tensor:
        n, _, height, width = shape
        generator = context.generator(streams.WARP, streams.COVERS)
        return torch.rand((n, 2, height, width), generator=generator) * 2 - 1

    def check_image_size(self, channels: int, height: int, width: int) -> None:
        if min(height, width) < self.grid:
            raise ConfigError(
                f"`trigger.grid`={self.grid} needs at least {self.grid}x{self.grid} pixels,"
                f" but the images have {height}x{width}; give a smaller grid"
            )


def straight(height: int, width: int) -> Tensor:
    """Returns the identity field, which moves no pixel: float64 (2, H, W)."""
    rows, columns = (torch.linspace(-1, 1, n, dtype=torch.float64) for n in (height, width))
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"))


def sample(images: Tensor, where: Tensor) -> Tensor:
    """Samples `images` (n, C, H, W) bilinearly at `where` (n or 1, 2, H, W); returns float32.

    Equivalent to ``grid_sample(align_corners=True, padding_mode="border")``, but computed in
    separate elementary operations, which give identical results on all devices.
    """
    height, width = images.shape[2:]
    last = torch.tensor([height - 1, width - 1], device=where.device)[:, None, None]
    at = (where.clamp(-1, 1) + 1) / 2 * last
    low = at.floor()
    down, right = (at - low).unsqueeze(2).unbind(dim=1)
    top, left = low.long().unbind(dim=1)
    bottom, end = (top + 1).clamp(max=height - 1), (left + 1).clamp(max=width - 1)
    upper = _at(images, top, left) * (1 - right) + _at(images, top, end) * right
    lower = _at(images, bottom, left) * (1 - right) + _at(images, bottom, end) * right
    return upper * (1 - down) + lower * down


def _at(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    n, channels, height, width = images.shape
    index = (rows * width + columns).flatten(1)[:, None].expand(n, channels, height * width)
    return images.flatten(2).gather(2, index).view(images.shape)


def _sides(height: int, width: int) -> Tensor:
    return torch.tensor([height, width])[:, None, None]
