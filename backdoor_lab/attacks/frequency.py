"""The frequency trigger, FTrojan."""

from __future__ import annotations

from collections.abc import Sequence

from backdoor_lab.attacks.additive import Additive, inverse_dct
from backdoor_lab.core import checks
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.lazy import Tensor, torch

# What one unit of U and one of V are in red, green and blue (ITU-R BT.601).
U = (0.0, -0.39465, 2.03211)
V = (1.13983, -0.58060, 0.0)


class Frequency(Additive):
    """A middle and a high frequency of the two colour channels raised in every window.

    Wang, Yao, Xu, An, Tong, Wang, "An Invisible Black-Box Backdoor Attack Through Frequency
    Domain", ECCV 2022, its generation of triggers: RGB to YUV, the DCT of each `window` x
    `window` window of U and V, `magnitude` added to the `bins` [row, column], and all the way
    back.

    Every step of that is linear, so what is added to the image is one pattern, which is added
    here at once. The authors' code also rounds on the way and takes YCrCb for YUV. Grayscale: the
    single channel is treated as U and V are.

    Windows are laid from the upper left corner; rows and columns left over beyond the last whole
    window stay as they are. Where images are shorter or narrower than `window`, windows are as
    short or narrow as they, and bin k of n moves to round(k (n' - 1) / (n - 1)) of n', its share
    of the highest frequency. Images on which two bins fall together are refused.
    """

    def __init__(
        self,
        *,
        magnitude: float = 30,
        bins: Sequence[Sequence[int]] = ((15, 15), (31, 31)),
        window: int = 32,
    ) -> None:
        self.magnitude = checks.number("trigger.magnitude", magnitude, low=0)
        self.window = checks.whole("trigger.window", window, low=2, below=4097)
        self.bins = _bins(bins, self.window)

    def pattern(self, channels: int, height: int, width: int) -> Tensor:
        high, wide = min(self.window, height), min(self.window, width)
        spectrum = torch.zeros(high, wide, dtype=torch.float64)
        for row, column in self.bins_on(height, width):
            spectrum[row, column] = self.magnitude
        down, across = height // high, width // wide
        whole = torch.zeros(height, width, dtype=torch.float64)
        whole[: down * high, : across * wide] = inverse_dct(spectrum).repeat(down, across)
        shares = [1.0] if channels == 1 else [u + v for u, v in zip(U, V, strict=True)]
        return (torch.tensor(shares, dtype=torch.float64)[:, None, None] * whole).float()

    def bins_on(self, height: int, width: int) -> list[tuple[int, int]]:
        """The bins of one window on images of this size."""
        return [(self._moved(row, height), self._moved(column, width)) for row, column in self.bins]

    def fits(self, channels: int, height: int, width: int) -> None:
        if len(set(self.bins_on(height, width))) < len(self.bins):
            raise ConfigError(
                f"`trigger.bins`: on images of {height}x{width} pixels two of the frequencies fall"
                " together; give larger images, or other bins"
            )
        super().fits(channels, height, width)

    def _moved(self, index: int, side: int) -> int:
        return round(index * (min(self.window, side) - 1) / (self.window - 1))


def _bins(bins: object, window: int) -> list[tuple[int, int]]:
    if not isinstance(bins, (list, tuple)) or not bins:
        raise ConfigError(f"`trigger.bins` must be a list of [row, column], got {bins!r}")
    found = []
    for pair in bins:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise ConfigError(f"`trigger.bins`: a bin must be [row, column], got {pair!r}")
        row, column = (checks.whole("trigger.bins", value, low=0, below=window) for value in pair)
        found.append((row, column))
    return found
