"""A smooth trigger made of low frequencies."""

from __future__ import annotations

from backdoor_lab.attacks.additive import Additive
from backdoor_lab.attacks.drawing import scale
from backdoor_lab.attacks.threat_model import ThreatModel
from backdoor_lab.core import streams, validation
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.lazy import Tensor, torch
from backdoor_lab.core.rng import torch_generator


class LowFrequency(Additive):
    """Adds a smooth bright pattern without high-frequency artifacts to the whole image.

    Based on the smooth trigger of Zeng, Park, Mao, Jia, "Rethinking the Backdoor Attacks' Triggers:
    A Frequency Perspective", ICCV 2021. As in the authors' code, the pattern is smoothed by a
    Gaussian low-pass filter with a standard deviation of `sigma` pixels, 5 `sigma` taps (rounded)
    and zero padding. Then it is scaled, all channels together, to 0..`strength` gray levels, so
    that it makes images brighter. `sigma` is given for images of 32x32 pixels; for others it is
    multiplied by the shorter side / 32.

    The authors optimize the pattern on a trained model. This pattern is not optimized: it is normal
    noise, drawn for each pixel and channel with `pattern_seed`.

    Rounding and clipping spread a little energy to other frequencies, as in the paper.
    """

    threat_model = ThreatModel(paper="knows data and model, to optimize the pattern")

    def __init__(self, *, strength: float = 51, sigma: float = 6, pattern_seed: int = 0) -> None:
        self.strength = validation.number("trigger.strength", strength, low=0.5)
        self.sigma = validation.number("trigger.sigma", sigma, low=0.01, below=4097)
        self.pattern_seed = validation.whole("trigger.pattern_seed", pattern_seed)

    def pattern(self, channels: int, height: int, width: int) -> Tensor:
        generator = torch_generator(self.pattern_seed, streams.LOW_FREQUENCY)
        noise = torch.randn(channels, height, width, generator=generator, dtype=torch.float64)
        return (self.strength * _rescaled(_smooth(noise, self.sigma))).float()

    def check_image_size(self, channels: int, height: int, width: int) -> None:
        if height * width == 1:
            raise ConfigError(
                f"`trigger`: images of {height}x{width} pixels contain only the zero frequency;"
                " this trigger needs images of at least 2 pixels"
            )
        super().check_image_size(channels, height, width)


def _smooth(image: Tensor, sigma: float) -> Tensor:
    """Returns `image`, float64 (C, H, W), after the low-pass filter; same shape."""
    height, width = image.shape[-2:]
    sigma = sigma * scale(height, width)
    return _filter(height, sigma) @ image @ _filter(width, sigma).T


def _filter(n: int, sigma: float) -> Tensor:
    """Returns the matrix (n, n) that applies a Gaussian filter to a row or column of n pixels. If
    the number of taps is even, there is one more tap after the pixel than before the pixel, as in
    the authors' code."""
    taps = max(1, round(5 * sigma))
    distance = torch.arange(taps, dtype=torch.float64) - (taps - 1) / 2
    kernel = torch.exp(-((distance / sigma) ** 2) / 2)
    kernel /= kernel.sum()
    tap = torch.arange(n) - torch.arange(n)[:, None] + (taps - 1) // 2
    return torch.where((tap >= 0) & (tap < taps), kernel[tap.clamp(0, taps - 1)], 0)


def _rescaled(image: Tensor) -> Tensor:
    """Returns `image`, rescaled so that its values range from 0 to 1."""
    image = image - image.min()
    return image / image.max()
