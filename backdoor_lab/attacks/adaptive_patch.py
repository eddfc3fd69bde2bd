"""Adaptive-Patch: one of several faint patches in training, several at once at test time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from backdoor_lab.attacks.base import AttackContext, PixelTrigger, Trigger, to_bytes
from backdoor_lab.core import streams, validation
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.lazy import Tensor, torch

KEYS = ("position", "rows", "color", "strength_train", "strength_test")
DRAWN, OPEN = "#", "."


class AdaptivePatch(Trigger):
    """Several small patches, each with its own opacity.

    Adaptive-Patch of Qi, Xie, Li, Mahloujifar, Mittal, "Revisiting the Assumption of Latent
    Separability for Backdoor Defenses", ICLR 2023. For a patch t with mask m and opacity a:

        x' = x + a · m · (t − x)

    Each poisoned image and each cover image gets one patch with opacity a = `strength_train`.
    Patches are assigned at random, each to an equal share of the images. Test images get every
    patch in turn, with opacity a = `strength_test`; a patch with `strength_test` 0 is omitted.

    The paper's four patches are image files (two logos, the BadNets patch, the trojan square) that
    are not included. The default patches are defined in the YAML file, one in each corner, with the
    paper's opacities: 0.5, 0.2, 0.5 and 0.3 in training; at test time 1 for two of the patches and
    0 for the other two.

    `patches` is a list of mappings with the keys `position`: (row, column) of the upper left pixel,
    negative values counting from the lower right corner; `rows`: strings of equal length, "#" for a
    pixel of the patch and "." for none; `color`: one value in 0..255 or three; `strength_train` and
    `strength_test`: opacities in 0..1. Raises ConfigError if an entry is malformed.
    """

    cover_rate = 2.0

    def __init__(self, *, patches: Sequence[dict[str, Any]]) -> None:
        if not isinstance(patches, (list, tuple)) or not patches:
            raise ConfigError(f"`trigger.patches` must list at least one patch, got {patches!r}")
        for number, patch in enumerate(patches):
            _check_keys(number, patch)
        self.marks = [_mark(number, patch) for number, patch in enumerate(patches)]
        self.strength_train = _strengths("strength_train", patches)
        self.strength_test = _strengths("strength_test", patches)
        if min(self.strength_train) == 0 or max(self.strength_test) == 0:
            raise ConfigError(
                "`trigger.patches`: every patch needs a `strength_train` above 0, and at least"
                " one patch a `strength_test` above 0"
            )

    def apply_test(self, images: Tensor) -> Tensor:
        values = images.float()
        for mark, opacity in zip(self.marks, self.strength_test, strict=True):
            values = _blend(values, mark, opacity)
        return to_bytes(values)

    def apply_train(self, images: Tensor, labels: Tensor, context: AttackContext) -> Tensor:
        return self._one_each(images, context.generator(streams.PATCHES, streams.POISON))

    def apply_cover(self, images: Tensor, labels: Tensor, context: AttackContext) -> Tensor:
        return self._one_each(images, context.generator(streams.PATCHES, streams.COVERS))

    def check_image_size(self, channels: int, height: int, width: int) -> None:
        for mark in self.marks:
            mark.check_image_size(channels, height, width)

    def _one_each(self, images: Tensor, generator: torch.Generator) -> Tensor:
        dealt = torch.randperm(len(images), generator=generator) % len(self.marks)
        for number, (mark, opacity) in enumerate(zip(self.marks, self.strength_train, strict=True)):
            mine = dealt.eq(number).to(images.device)
            images[mine] = to_bytes(_blend(images[mine].float(), mark, opacity))
        return images


def _blend(values: Tensor, mark: PixelTrigger, opacity: float) -> Tensor:
    """Returns float images (n, C, H, W) with the patch `mark` blended in at the given opacity."""
    black = mark.apply_test(torch.zeros_like(values[:1]))
    white = mark.apply_test(torch.full_like(values[:1], 255.0))
    # A black and a white image become equal where the patch covers them, and differ elsewhere.
    return values + opacity * black.eq(white) * (black - values)


def _check_keys(number: int, patch: object) -> None:
    where = f"trigger.patches[{number}]"
    if not isinstance(patch, dict):
        raise ConfigError(f"`{where}` must be a mapping with {', '.join(KEYS)}, got {patch!r}")
    validation.keys(where, patch, KEYS)
    missing = [key for key in KEYS if key not in patch]
    if missing:
        raise ConfigError(f"`{where}` lacks a value for {', '.join(missing)}")


def _mark(number: int, patch: dict[str, Any]) -> PixelTrigger:
    where = f"trigger.patches[{number}]"
    rows, at = patch["rows"], patch["position"]
    if not isinstance(rows, (list, tuple)) or not _is_drawing(rows):
        raise ConfigError(
            f"`{where}.rows` must list strings of equal length, with {DRAWN} where the patch covers"
            f" a pixel (at least once) and {OPEN} elsewhere, got {rows!r}"
        )
    if not isinstance(at, (list, tuple)) or len(at) != 2:
        raise ConfigError(f"`{where}.position` must be [row, column], got {at!r}")
    top, left = (
        validation.whole(f"{where}.position", value, low=-(2**15), below=2**15) for value in at
    )
    for first, size in ((top, len(rows)), (left, len(rows[0]))):
        if first < 0 < first + size:
            raise ConfigError(
                f"`{where}`: a patch of {len(rows)}x{len(rows[0])} pixels at ({top}, {left})"
                " extends past the lower or right edge"
            )
    drawn = [
        (top + row, left + column)
        for row, line in enumerate(rows)
        for column, letter in enumerate(line)
        if letter == DRAWN
    ]
    return PixelTrigger(drawn, patch["color"])


def _is_drawing(rows: Sequence[object]) -> bool:
    if not rows or not all(isinstance(line, str) and line for line in rows):
        return False
    lines = [str(line) for line in rows]
    letters = set("".join(lines))
    return len(set(map(len, lines))) == 1 and DRAWN in letters and letters <= {DRAWN, OPEN}


def _strengths(key: str, patches: Sequence[dict[str, Any]]) -> list[float]:
    return [
        validation.share(f"trigger.patches[{number}].{key}", patch[key])
        for number, patch in enumerate(patches)
    ]
