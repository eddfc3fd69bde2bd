"""A smooth trigger made of low frequencies."""

from __future__ import annotations

from backdoor_lab.attacks.additive import Additive, inverse_dct
from backdoor_lab.attacks.threat_model import ThreatModel
from backdoor_lab.core import streams, validation
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.lazy import Tensor, torch
from backdoor_lab.core.rng import torch_generator


class LowFrequency(Additive):
    """Adds a smooth pattern without high-frequency artifacts to the whole image.

    Based on the smooth trigger of Zeng, Park, Mao, Jia, "Rethinking the Backdoor Attacks' Triggers:
    A Frequency Perspective", ICCV 2021. The paper optimizes the pattern on a trained model under a
    low-pass filter. This pattern is not optimized: for each channel the DCT-II coefficients of the
    `band` x `band` lowest frequencies, except the constant one, are drawn from a normal
    distribution with `pattern_seed`, all others are zero, and the pattern is scaled to a largest
    absolute value of `strength` gray levels. It may need a larger strength than the paper's for the
    same success rate.

    Rounding and clipping spread a little energy to other frequencies, as in the paper.
    """

    threat_model = ThreatModel(paper="knows data and model, to optimize the pattern")

    def __init__(self, *, strength: float = 16, band: int = 4, pattern_seed: int = 0) -> None:
        self.strength = validation.number("trigger.strength", strength, low=0.5)
        self.band = validation.whole("trigger.band", band, low=2, below=4097)
        self.pattern_seed = validation.whole("trigger.pattern_seed", pattern_seed)

    def pattern(self, channels: int, height: int, width: int) -> Tensor:
        shape = (channels, self.band, self.band)
        low = torch.randn(
            shape, generator=torch_generator(self.pattern_seed, streams.LOW_FREQUENCY)
        )
        low[:, 0, 0] = 0
        spectrum = torch.zeros(channels, height, width, dtype=torch.float64)
        spectrum[:, : self.band, : self.band] = low
        smooth = inverse_dct(spectrum)
        return (self.strength * smooth / smooth.abs().max()).float()

    def check_image_size(self, channels: int, height: int, width: int) -> None:
        if min(height, width) <= self.band:
            raise ConfigError(
                f"`trigger.band`={self.band}: images of {height}x{width} pixels have no"
                f" frequencies above this band; they need more than {self.band} rows and columns"
            )
        super().check_image_size(channels, height, width)
