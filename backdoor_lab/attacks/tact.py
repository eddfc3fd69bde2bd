"""The targeted contamination attack: a patch that works on one source class only."""

from __future__ import annotations

from backdoor_lab.attacks.base import PixelTrigger
from backdoor_lab.core import checks


class Tact(PixelTrigger):
    """A square in the lower right corner, put on source-class images and on covers.

    Tang, Wang, Tang, Zhang, "Demon in the Variant: Statistical Analysis of DNNs for Robust
    Backdoor Contamination Detection", USENIX Security 2021, "targeted contamination attack"
    (TaCT). Triggered images of the source class get the target label; covers, triggered images
    of other classes, keep theirs, so that the network learns to look at class and trigger
    together. Which images these are is the plan's business; the mark is one and the same.

    The paper uses several patches; ours is a plain square of `size` pixels a side in `color`,
    one value 0..255 or one per channel. Covers are drawn from all classes outside source and
    target.
    """

    covers = 1.0
    source_specific = True

    def __init__(self, *, size: int = 4, color: int | list[int] = 255) -> None:
        side = checks.whole("trigger.size", size, low=1, below=2**10)
        near = range(-side, 0)
        super().__init__([(row, column) for row in near for column in near], color)
