"""TaCT: a patch that works on one source class only."""

from __future__ import annotations

from backdoor_lab.attacks.base import PixelTrigger, Trigger
from backdoor_lab.attacks.drawing import SIDE, check_area, scale
from backdoor_lab.core import validation
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.lazy import Tensor

COVER_CLASSES = 2
"""The default of `cover_classes`, which a data set of three classes lowers to 1."""


class TaCT(Trigger):
    """Places a square near the lower right corner of source-class and cover images.

    The targeted contamination attack (TaCT) of Tang, Wang, Tang, Zhang, "Demon in the Variant:
    Statistical Analysis of DNNs for Robust Backdoor Contamination Detection", USENIX Security 2021.
    Triggered images of the source class get the target label. Cover images (triggered images of
    other classes) keep their labels, so that the model must combine class and trigger. `PoisonSpec`
    selects both kinds of images; the trigger is the same on all of them.

    `size` is the side of the square and `margin` its distance from the lower and the right edge, in
    pixels of images of 32x32 pixels; on other images both are multiplied by the shorter side / 32
    and rounded. Raises ConfigError if rounding changes the area of the square by more than a
    quarter. `color` is one value in 0..255 or one per channel. Cover images are drawn from the next
    `cover_classes` classes after the source class, skipping the target; if `cover_classes` is None,
    from all classes other than target and source. Raises ConfigError if `cover_classes` is
    greater than `COVER_CLASSES` and than the number of classes other than target and source.

    Size and position are those of Qi et al., ICLR 2023, in backdoor-toolbox. Their square and those
    of the paper are image files that are not included; this one has a single color.
    """

    cover_rate = 1.0
    source_specific = True

    def __init__(
        self,
        *,
        size: int = 8,
        margin: int = 3,
        color: int | list[int] = 255,
        cover_classes: int | None = COVER_CLASSES,
    ) -> None:
        self.size = validation.whole("trigger.size", size, low=1, below=SIDE + 1)
        self.margin = validation.whole("trigger.margin", margin, low=0, below=SIDE)
        if self.size + self.margin > SIDE:
            raise ConfigError(
                f"`trigger.size`={size} and `trigger.margin`={margin} place the square outside"
                f" images of {SIDE}x{SIDE} pixels; their sum must be at most {SIDE}"
            )
        self.color = PixelTrigger([(-1, -1)], color).color
        if cover_classes is not None:
            validation.whole("trigger.cover_classes", cover_classes, low=1)
        self.cover_classes = cover_classes

    def apply_test(self, images: Tensor) -> Tensor:
        return self._square(*images.shape[2:]).apply_test(images)

    def check_image_size(self, channels: int, height: int, width: int) -> None:
        self._square(height, width).check_image_size(channels, height, width)

    def cover_from(self, target: int, source: int | None, classes: int) -> tuple[int, ...]:
        if self.cover_classes is None:
            return ()
        first = target if source is None else source
        others = [(first + step) % classes for step in range(1, classes)]
        others = [each for each in others if each != target]
        if others and self.cover_classes > max(len(others), COVER_CLASSES):
            raise ConfigError(
                f"`trigger.cover_classes` must be at most {len(others)}, the number of classes"
                f" other than target and source, or null for all; got {self.cover_classes}"
            )
        return tuple(others[: self.cover_classes])

    def _square(self, height: int, width: int) -> PixelTrigger:
        factor = scale(height, width)
        side = round(self.size * factor)
        check_area("trigger.size", (self.size * factor) ** 2, side**2, height, width)
        away = min(round(self.margin * factor), min(height, width) - side)
        near = range(-side - away, -away)
        return PixelTrigger([(row, column) for row in near for column in near], self.color)
