"""TaCT: a patch that works on one source class only."""

from __future__ import annotations

from backdoor_lab.attacks.base import PixelTrigger
from backdoor_lab.core import validation


class TaCT(PixelTrigger):
    """Places a square in the lower right corner of source-class and cover images.

    The targeted contamination attack (TaCT) of Tang, Wang, Tang, Zhang, "Demon in the Variant:
    Statistical Analysis of DNNs for Robust Backdoor Contamination Detection", USENIX Security 2021.
    Triggered images of the source class get the target label; cover images, triggered images of
    other classes, keep theirs, so that the model must combine class and trigger. `PoisonSpec`
    selects both kinds of images; the trigger is the same on all of them.

    The paper uses several patches; this one is a plain square with a side of `size` pixels in
    `color`, one value in 0..255 or one per channel. Cover images are drawn from all classes
    except source and target.
    """

    cover_rate = 1.0
    source_specific = True

    def __init__(self, *, size: int = 4, color: int | list[int] = 255) -> None:
        side = validation.whole("trigger.size", size, low=1, below=2**10)
        near = range(-side, 0)
        super().__init__([(row, column) for row in near for column in near], color)
