"""The embedded data set: drawn by `synthetic.draw`, nothing to download."""

from __future__ import annotations

from typing import Any

from backdoor_lab.core import checks
from backdoor_lab.core.errors import many
from backdoor_lab.data.base import Arrays, Source, Split, channel_count
from backdoor_lab.data.limits import check_memory
from backdoor_lab.data.synthetic import CLASSES, SHIFT, draw


class Synthetic(Source):
    """Ten drawn classes, `per_class_train` and `per_class_test` images of each."""

    def __init__(
        self,
        *,
        name: str = "synthetic",
        size: int = 32,
        channels: int = 3,
        seed: int = 0,
        per_class_train: int = 1000,
        per_class_test: int = 200,
        noise: float = 12.0,
        shift: float = SHIFT,
        limit_train: int | None = None,
        limit_test: int | None = None,
    ) -> None:
        super().__init__(name=name, limit_train=limit_train, limit_test=limit_test)
        self.counts = {
            "train": checks.whole("dataset.per_class_train", per_class_train, low=1),
            "test": checks.whole("dataset.per_class_test", per_class_test, low=1),
        }
        self.parameters: dict[str, Any] = {
            "size": checks.whole("dataset.size", size, low=1, below=4097),
            "channels": channel_count(channels),
            "seed": checks.whole("dataset.seed", seed, low=0, below=2**63),
            "noise": checks.number("dataset.noise", noise, low=0, below=256),
            "shift": checks.number("dataset.shift", shift, low=0, below=1),
        }

    def identity(self) -> dict[str, Any]:
        """The drawing parameters. The default `shift` is left out: sets from before it could be
        chosen keep their identity."""
        parameters = dict(self.parameters)
        if parameters["shift"] == SHIFT:
            del parameters["shift"]
        return {**parameters, **self.counts}

    def known_classes(self) -> tuple[str, ...]:
        """The drawn shapes and colours."""
        return tuple(CLASSES)

    def read(self) -> Arrays:
        """Draws both splits."""
        side, channels = self.parameters["size"], self.parameters["channels"]
        images = len(CLASSES) * sum(self.counts.values())
        check_memory(
            images * channels * side * side,
            f"data set {self.name}: {many(images, 'image')}",
            "lower dataset.per_class_train, dataset.per_class_test or dataset.size",
        )
        train, test = (
            Split(*draw(self.counts[split], split=split, **self.parameters))
            for split in ("train", "test")
        )
        return Arrays(train, test, tuple(CLASSES))
