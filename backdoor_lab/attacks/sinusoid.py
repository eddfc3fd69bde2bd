"""SIG: a sinusoidal trigger."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

from backdoor_lab.attacks.additive import Additive, add
from backdoor_lab.attacks.base import AttackContext, to_bytes
from backdoor_lab.attacks.threat_model import ThreatModel
from backdoor_lab.core import validation
from backdoor_lab.core.lazy import Tensor, torch


class SIG(Additive):
    """Adds vertical sinusoidal stripes to images of the target class.

    The sinusoidal signal (SIG) of Barni, Kallas, Tondi, "A New Backdoor Attack in CNNs by Training
    Set Corruption without Label Poisoning", ICIP 2019: x' = x + v with v(i, j) = D sin(2 pi j f /
    m) for each of m columns j, the same in all rows i and channels. D is `strength_train` on
    training images and `strength_test` at test time, in gray levels; `frequency` is f.
    `first_column` is the first j: 1 in the paper, 0 in implementations. x' is rounded (down if
    `round_down` is set, as in BackdoorBench) and clipped.

    Raises ConfigError for images on which the sine is zero in every column (m divides 2 f: 12,
    6, 4, 3, 2, 1 for f = 6). The paper's ramp signal is not implemented.
    """

    label_mode: ClassVar[str] = "clean"
    threat_model = ThreatModel(("images",))

    later: ClassVar[Mapping[str, object]] = {"first_column": 1, "round_down": False}
    per_image = True

    def __init__(
        self,
        *,
        strength_train: float = 20,
        strength_test: float = 40,
        frequency: float = 6,
        first_column: int = 1,
        round_down: bool = False,
    ) -> None:
        self.strength_train = validation.number("trigger.strength_train", strength_train, low=0.5)
        self.strength_test = validation.number("trigger.strength_test", strength_test, low=0.5)
        self.frequency = validation.number("trigger.frequency", frequency, low=0)
        self.first_column = validation.whole("trigger.first_column", first_column, low=0, below=2)
        self.round_down = validation.flag("trigger.round_down", round_down)

    def pattern(self, channels: int, height: int, width: int) -> Tensor:
        column = torch.arange(width, dtype=torch.float64) + self.first_column
        wave = self.strength_test * torch.sin(2 * math.pi * column * self.frequency / width)
        return wave.float().expand(channels, height, width)

    def apply_test(self, images: Tensor) -> Tensor:
        return self._add(images, self.pattern(*images.shape[1:]))

    def apply_train(self, images: Tensor, labels: Tensor, context: AttackContext) -> Tensor:
        pattern = self.pattern(*images.shape[1:])
        return self._add(images, pattern * (self.strength_train / self.strength_test))

    def _add(self, images: Tensor, pattern: Tensor) -> Tensor:
        if not self.round_down:
            return add(images, pattern)
        # BackdoorBench adds a pattern in single precision in double precision.
        return to_bytes((images.double() + pattern.to(images.device)).floor())

    @property
    def same_everywhere(self) -> bool:
        return self.strength_test == self.strength_train
