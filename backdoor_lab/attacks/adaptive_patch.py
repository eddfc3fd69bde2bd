"""Adaptive-Patch: one of several faint patches in training, opaque patches at test time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from backdoor_lab.attacks.base import AttackContext, Trigger, to_bytes
from backdoor_lab.attacks.drawing import Drawing
from backdoor_lab.core import streams, validation
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.lazy import Tensor, torch
from backdoor_lab.core.streams import Stream

KEYS = ("position", "rows", "color", "strength_train", "strength_test")


class AdaptivePatch(Trigger):
    """Several patches, each with its own opacity.

    Adaptive-Patch of Qi, Xie, Li, Mahloujifar, Mittal, "Revisiting the Assumption of Latent
    Separability for Backdoor Defenses", ICLR 2023. For a patch t with mask m and opacity a:

        x' = x + a · m · (t − x)

    Each poisoned image and each cover image gets one of the patches with a `strength_train` above
    0, with opacity a = `strength_train`. Patches are assigned at random, each to an equal share of
    the images. Each test image gets all patches with a `strength_test` above 0, one after the
    other, with opacity a = `strength_test`.

    The authors' patches are image files (two logos, the BadNets patch, the trojan square) that are
    not included. The default patches are drawn in the YAML file. Their opacities, positions and
    areas are those of the authors' code for CIFAR-10. The four patches for training cover 25, 140,
    36 and 64 pixels; the two for test images cover 50 and 36 pixels, and 68 together, since they
    overlap.

    `patches` is a list of mappings. Positions and drawings are for images of 32x32 pixels; on other
    images, positions and the sizes of patches are multiplied by the shorter side / 32 and rounded.
    Raises ConfigError if rounding changes the area of a patch by more than a quarter, or if an
    entry is malformed. The keys:

    - `position`: [row, column] of the upper left pixel, or a list of such pairs; negative values
      count from the lower right corner.
    - `rows`: strings of equal length, "#" for a pixel of the patch and "." for none.
    - `color`: one value in 0..255 or three; or a mapping of the letters in `rows` to such colors.
    - `strength_train`, `strength_test`: opacities in 0..1.
    """

    cover_rate = 2.0

    def __init__(self, *, patches: Sequence[dict[str, Any]]) -> None:
        if not isinstance(patches, (list, tuple)) or not patches:
            raise ConfigError(f"`trigger.patches` must list at least one patch, got {patches!r}")
        for number, patch in enumerate(patches):
            _check_keys(number, patch)
        self.drawings = [Drawing(f"trigger.patches[{n}]", each) for n, each in enumerate(patches)]
        self.train = _used("strength_train", patches)
        self.test = _used("strength_test", patches)
        idle = sorted({*range(len(patches))} - self.train.keys() - self.test.keys())
        if idle or not self.train or not self.test:
            raise ConfigError(
                "`trigger.patches`: every patch needs `strength_train` or `strength_test` above 0;"
                " at least one patch needs `strength_train` above 0, and at least one patch needs"
                " `strength_test` above 0"
            )

    def apply_test(self, images: Tensor) -> Tensor:
        values = images.float()
        for number, opacity in self.test.items():
            values = self._blend(values, number, opacity)
        return to_bytes(values)

    def apply_train(self, images: Tensor, labels: Tensor, context: AttackContext) -> Tensor:
        dealt = self.drawn(images.shape, context, streams.POISON)
        return self.apply_drawn(images, dealt)

    def apply_cover(self, images: Tensor, labels: Tensor, context: AttackContext) -> Tensor:
        dealt = self.drawn(images.shape, context, streams.COVERS)
        return self.apply_drawn(images, dealt)

    def drawn(self, shape: torch.Size, context: AttackContext, what: Stream) -> Tensor:
        """Returns which of the patches for training each image gets: int64 (n,), counted from
        0."""
        generator = context.generator(streams.PATCHES, what)
        return torch.randperm(shape[0], generator=generator) % len(self.train)

    def apply_drawn(self, images: Tensor, drawn: Tensor) -> Tensor:
        for turn, (number, opacity) in enumerate(self.train.items()):
            mine = drawn.eq(turn).to(images.device)
            images[mine] = to_bytes(self._blend(images[mine].float(), number, opacity))
        return images

    def check_image_size(self, channels: int, height: int, width: int) -> None:
        for drawing in self.drawings:
            drawing.scaled(height, width)

    def _blend(self, values: Tensor, number: int, opacity: float) -> Tensor:
        """Returns float images (n, C, H, W) with a patch blended in at the given opacity."""
        color, mask = (
            part.to(values.device) for part in self.drawings[number].on(*values.shape[1:])
        )
        return values + opacity * mask * (color - values)


def _check_keys(number: int, patch: object) -> None:
    where = f"trigger.patches[{number}]"
    if not isinstance(patch, dict):
        raise ConfigError(
            f"`{where}` must be a mapping with the keys {', '.join(KEYS)}, got {patch!r}"
        )
    validation.keys(where, patch, KEYS)
    missing = [key for key in KEYS if key not in patch]
    if missing:
        raise ConfigError(f"`{where}` lacks a value for {', '.join(missing)}")


def _used(key: str, patches: Sequence[dict[str, Any]]) -> dict[int, float]:
    """Maps the index of each patch to its opacity. Omits patches of opacity 0."""
    opacities = {
        number: validation.share(f"trigger.patches[{number}].{key}", patch[key])
        for number, patch in enumerate(patches)
    }
    return {number: opacity for number, opacity in opacities.items() if opacity > 0}
