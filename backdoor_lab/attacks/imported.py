"""The trigger of a data set that was poisoned before it was read, which cannot be applied again."""

from __future__ import annotations

from typing import Any

from backdoor_lab.attacks.base import Trigger
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.lazy import Tensor


class ImportedTrigger(Trigger):
    """Stands for the trigger of `dataset=poisoned`: the set contains the poisoned images and the
    triggered test images, so that no image is triggered here. `options` are those that the set's
    card states."""

    def __init__(self, *, options: dict[str, Any] | None = None) -> None:
        self.options = dict(options or {})

    def apply_test(self, images: Tensor) -> Tensor:
        """Raises ConfigError."""
        raise ConfigError(
            "the trigger of `dataset=poisoned` cannot be applied to other images: only its results"
            " are known"
        )
