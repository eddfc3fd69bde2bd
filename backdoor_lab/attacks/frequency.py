"""FTrojan: a trigger in the frequency domain."""

from __future__ import annotations

from collections.abc import Sequence

from backdoor_lab.attacks.additive import add, inverse_dct, refuse_faint
from backdoor_lab.attacks.base import Trigger
from backdoor_lab.core import validation
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.lazy import Tensor, torch

# OpenCV's integer coefficients of YCrCb, in units of 2^-14.
ONE = 16384
LUMA = (4899, 9617, 1868)
FROM_RED = 11682
FROM_BLUE = 9241
TO_RED = 22987
TO_GREEN = (-11698, -5636)
TO_BLUE = 29049


class FTrojan(Trigger):
    """Adds a constant to one middle and one high frequency of both chroma channels in every window.

    FTrojan of Wang, Yao, Xu, An, Tong, Wang, "An Invisible Black-Box Backdoor Attack Through
    Frequency Domain", ECCV 2022, trigger generation: convert RGB to YUV, take the DCT of each
    `window` x `window` window of both chroma channels, add `strength` to the coefficients at
    `bins`, and convert back. Each bin is the pair [row, column] of one coefficient.

    As in the authors' code, the color space is OpenCV's YCrCb in integers, and the changed chroma
    values are truncated to 8 bits, so that values outside 0..255 wrap around. The inverse DCT of
    the change is added to the chroma channels, which is the same as a DCT, a change and an inverse
    DCT, up to the rounding errors of the two transforms. In the authors' code these errors also
    lower some luma values by 1 (8 % of them with OpenCV 5.0); which ones depends on the library, so
    this is not imitated. On grayscale images, which the authors do not use, the change is added to
    the single channel, rounded and clipped.

    Windows start at the upper left corner. Rows and columns beyond the last whole window undergo
    only the color conversion. On images smaller than `window`, windows shrink to the image. If a
    side of the window shrinks from n to n' pixels, row or column k of a bin becomes
    round(k (n' - 1) / (n - 1)), which is the same fraction of the highest frequency. Raises
    ConfigError for images on which two bins coincide.
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

    def apply_test(self, images: Tensor) -> Tensor:
        change = self.change(*images.shape[2:]).to(images.device)
        if images.shape[1] == 1:
            return add(images, change.float())
        luma, *chroma = _to_ycrcb(images)
        return _to_rgb(luma, *((plane + change).long() % 256 for plane in chroma))

    def change(self, height: int, width: int) -> Tensor:
        """Returns what is added to a channel: float64 (height, width) on the CPU, in gray
        levels."""
        high, wide = min(self.window, height), min(self.window, width)
        spectrum = torch.zeros(high, wide, dtype=torch.float64)
        for row, column in self.bins_on(height, width):
            spectrum[row, column] = self.strength
        down, across = height // high, width // wide
        whole = torch.zeros(height, width, dtype=torch.float64)
        whole[: down * high, : across * wide] = inverse_dct(spectrum).repeat(down, across)
        return whole

    def bins_on(self, height: int, width: int) -> list[tuple[int, int]]:
        """Returns the (row, column) of each bin in a window, for images of the given size."""
        return [(self._moved(row, height), self._moved(column, width)) for row, column in self.bins]

    def check_image_size(self, channels: int, height: int, width: int) -> None:
        if len(set(self.bins_on(height, width))) < len(self.bins):
            raise ConfigError(
                f"`trigger.bins`: on images of {height}x{width} pixels, two of the frequencies"
                " coincide; use larger images or other bins"
            )
        refuse_faint(self.change(height, width))

    def _moved(self, index: int, side: int) -> int:
        return round(index * (min(self.window, side) - 1) / (self.window - 1))


def _to_ycrcb(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns Y, Cr and Cb, int64 (n, H, W) in 0..255, of `images` uint8 (n, 3, H, W)."""
    red, green, blue = images.long().unbind(1)
    luma = _scaled(LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue)
    cr, cb = (
        _clipped(128 + _scaled((channel - luma) * weight))
        for channel, weight in ((red, FROM_RED), (blue, FROM_BLUE))
    )
    return luma, cr, cb


def _to_rgb(luma: Tensor, cr: Tensor, cb: Tensor) -> Tensor:
    """The inverse of `_to_ycrcb`, up to rounding; uint8."""
    cr, cb = cr - 128, cb - 128
    green = _scaled(TO_GREEN[0] * cr + TO_GREEN[1] * cb)
    channels = luma + _scaled(TO_RED * cr), luma + green, luma + _scaled(TO_BLUE * cb)
    return _clipped(torch.stack(channels, dim=1)).to(torch.uint8)


def _scaled(x: Tensor) -> Tensor:
    """Returns x / 2^14, rounded to the nearest integer; halves are rounded up."""
    return (x + ONE // 2).div(ONE, rounding_mode="floor")


def _clipped(x: Tensor) -> Tensor:
    return x.clamp(0, 255)


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
