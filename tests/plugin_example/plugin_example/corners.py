"""A trigger: the four corners of an image."""

from torch import Tensor

from backdoor_lab.attacks.base import Trigger
from backdoor_lab.core import validation
from backdoor_lab.core.errors import ConfigError


class Corners(Trigger):
    """Sets a square of `size` pixels in each corner to one color (0..255)."""

    def __init__(self, *, size: int = 1, color: int = 255) -> None:
        self.size = validation.whole("trigger.size", size, low=1)
        self.color = validation.whole("trigger.color", color, low=0, below=256)

    def check_image_size(self, channels: int, height: int, width: int) -> None:
        if self.size > min(height, width):
            raise ConfigError(
                f"`trigger.size`={self.size} does not fit in images of {height}x{width}"
            )

    def apply_test(self, images: Tensor) -> Tensor:
        self.check_image_size(*images.shape[1:])
        for rows in (slice(self.size), slice(-self.size, None)):
            for columns in (slice(self.size), slice(-self.size, None)):
                images[:, :, rows, columns] = self.color
        return images
