"""The smooth trigger of low frequencies."""

from __future__ import annotations

from backdoor_lab.attacks.additive import Additive, inverse_dct
from backdoor_lab.core import checks, streams
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.lazy import Tensor, torch
from backdoor_lab.core.seeds import torch_generator


class LowFrequency(Additive):
    """A smooth pattern added to the whole image: no high frequency gives it away.

    Zeng, Park, Mao, Jia, "Rethinking the Backdoor Attacks' Triggers: A Frequency Perspective",
    ICCV 2021, its smooth trigger. The paper optimises the pattern on a trained network and
    low-pass filters it on the way. Here it is not optimised: the DCT-II coefficients of the
    `band` x `band` lowest frequencies, the constant one left out, are drawn from a normal
    distribution by `pattern_seed` for each channel, all others are zero, and the pattern is
    scaled so that its largest value is `magnitude` grey levels. It shares the paper's constraint,
    not its search, so it may need a larger magnitude for the same success.

    Rounding and clipping spread a little energy to other frequencies, as in the paper.
    """

    def __init__(self, *, magnitude: float = 16, band: int = 4, pattern_seed: int = 0) -> None:
        self.magnitude = checks.number("trigger.magnitude", magnitude, low=0.5)
        self.band = checks.whole("trigger.band", band, low=2, below=4097)
        self.pattern_seed = checks.whole("trigger.pattern_seed", pattern_seed)

    def pattern(self, channels: int, height: int, width: int) -> Tensor:
        shape = (channels, self.band, self.band)
        low = torch.randn(
            shape, generator=torch_generator(self.pattern_seed, streams.LOW_FREQUENCY)
        )
        low[:, 0, 0] = 0
        spectrum = torch.zeros(channels, height, width, dtype=torch.float64)
        spectrum[:, : self.band, : self.band] = low
        smooth = inverse_dct(spectrum)
        return (self.magnitude * smooth / smooth.abs().max()).float()

    def fits(self, channels: int, height: int, width: int) -> None:
        if min(height, width) <= self.band:
            raise ConfigError(
                f"`trigger.band`={self.band}: images of {height}x{width} pixels have no higher"
                f" frequencies than that; they need more than {self.band} rows and columns"
            )
        super().fits(channels, height, width)
