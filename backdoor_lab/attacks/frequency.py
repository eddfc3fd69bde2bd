"""FTrojan: a trigger in the frequency domain."""

from __future__ import annotations

from collections.abc import Sequence

from backdoor_lab.attacks.additive import Additive, inverse_dct
from backdoor_lab.core import validation
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.lazy import Tensor, torch

# Contribution of one unit of Cb and of Cr to red, green and blue (OpenCV's YCrCb).
CB = (0.0, -0.344, 1.773)
CR = (1.403, -0.714, 0.0)


class FTrojan(Additive):
    """Adds a constant to one middle and one high frequency of both chroma channels in every window.

    FTrojan of Wang, Yao, Xu, An, Tong, Wang, "An Invisible Black-Box Backdoor Attack Through
    Frequency Domain", ECCV 2022, trigger generation: convert RGB to YUV, take the DCT of each
    `window` x `window` window of both chroma channels, add `strength` to the coefficients at
    `bins`, and convert back. Each bin is the pair [row, column] of one coefficient. The color space
    is that of the authors' code, OpenCV's YCrCb.

    These steps are linear, so they amount to adding one fixed pattern to the image; the sum is
    rounded and clipped. The authors' code instead truncates to integers before and after the
    conversions, and there values outside 0..255 wrap around. On grayscale images the single
    channel is treated like a chroma channel.

    Windows start at the upper left corner; rows and columns after the last whole window are
    unchanged. On images smaller than `window`, windows shrink to the image. If a side of the window
    shrinks from n to n' pixels, row or column k of a bin becomes round(k (n' - 1) / (n - 1)), which
    is the same fraction of the highest frequency. Raises ConfigError for images on which two bins
    coincide.
    """

    def __init__(
        self,
        *,
        strength: float = 30,
        bins: Sequence[Sequence[int]] = ((15, 15), (31, 31)),
        window: int = 32,
    ) -> None:
        self.strength = validation.number("trigger.strength", strength, low=0)
        self.window = validation.whole("trigger.window", window, low=2, below=4097)
        self.bins = _bins(bins, self.window)

    def pattern(self, channels: int, height: int, width: int) -> Tensor:
        high, wide = min(self.window, height), min(self.window, width)
        spectrum = torch.zeros(high, wide, dtype=torch.float64)
        for row, column in self.bins_on(height, width):
            spectrum[row, column] = self.strength
        down, across = height // high, width // wide
        whole = torch.zeros(height, width, dtype=torch.float64)
        whole[: down * high, : across * wide] = inverse_dct(spectrum).repeat(down, across)
        shares = [1.0] if channels == 1 else [b + r for b, r in zip(CB, CR, strict=True)]
        return (torch.tensor(shares, dtype=torch.float64)[:, None, None] * whole).float()

    def bins_on(self, height: int, width: int) -> list[tuple[int, int]]:
        """Returns the (row, column) of each bin in a window, for images of the given size."""
        return [(self._moved(row, height), self._moved(column, width)) for row, column in self.bins]

    def check_image_size(self, channels: int, height: int, width: int) -> None:
        if len(set(self.bins_on(height, width))) < len(self.bins):
            raise ConfigError(
                f"`trigger.bins`: on images of {height}x{width} pixels two of the frequencies"
                " coincide; use larger images or other bins"
            )
        super().check_image_size(channels, height, width)

    def _moved(self, index: int, side: int) -> int:
        return round(index * (min(self.window, side) - 1) / (self.window - 1))


def _bins(bins: object, window: int) -> list[tuple[int, int]]:
    if not isinstance(bins, (list, tuple)) or not bins:
        raise ConfigError(f"`trigger.bins` must be a list of [row, column] pairs, got {bins!r}")
    found = []
    for pair in bins:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise ConfigError(f"`trigger.bins`: a bin must be [row, column], got {pair!r}")
        row, column = (
            validation.whole("trigger.bins", value, low=0, below=window) for value in pair
        )
        found.append((row, column))
    return found
