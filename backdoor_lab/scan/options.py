"""The options of a scan, and its fixed recipe for training networks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backdoor_lab.core import validation
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.paths import absolute
from backdoor_lab.scan.canaries import as_text, kinds_of
from backdoor_lab.training.recipe import Recipe

BATCH = 64
"""Images per step."""


@dataclass(frozen=True)
class ScanOptions:
    """The options of a scan; `conf/scan.yaml` explains them. Raises ConfigError for invalid
    values."""

    networks: int = 2
    alpha: float = 0.05
    size: int = 32
    width: int = 8
    epochs: int = 6
    permutations: int = 999
    canaries: str = "default"
    minutes: float = 20.0
    seed: int = 0

    def __post_init__(self) -> None:
        validation.whole("scan.networks", self.networks, low=1, below=100)
        if not 0 < validation.number("scan.alpha", self.alpha) < 1:
            raise ConfigError(f"`scan.alpha` must satisfy 0 < scan.alpha < 1, got {self.alpha!r}")
        validation.whole("scan.size", self.size, low=8, below=513)
        validation.whole("scan.width", self.width, low=1, below=513)
        validation.whole("scan.epochs", self.epochs, low=1)
        validation.whole("scan.permutations", self.permutations, low=999)
        kinds_of(self.canaries)
        validation.number("scan.minutes", self.minutes, low=0)
        validation.whole("seed", self.seed, low=0, below=2**63)

    @classmethod
    def of(cls, config: dict[str, Any]) -> tuple[ScanOptions, Path | None, Path | None]:
        """Returns the options of a composed configuration, and the paths `scan.trusted` and
        `scan.reference`. Raises ConfigError for invalid values."""
        given = dict(config["scan"])
        paths = [_path(f"scan.{key}", given.pop(key)) for key in ("trusted", "reference")]
        given["canaries"] = as_text(given["canaries"])
        return cls(**given, seed=config["seed"]), paths[0], paths[1]

    @property
    def model(self) -> dict[str, Any]:
        """The network, as a `model` section of a configuration."""
        return {"name": "airbench", "width": self.width, "stem": None}

    @property
    def recipe(self) -> Recipe:
        """How the networks are trained: the schedule of airbench, without augmentation, since a
        crop may cut a trigger off."""
        return Recipe.of({
            "name": "scan", "epochs": self.epochs, "batch_size": BATCH, "lr": 0.1,
            "momentum": 0.85, "nesterov": True, "weight_decay": 1.33e-3, "schedule": "triangle",
            "warmup": 0.23, "bias_lr": 64.0, "label_smoothing": 0.2,
        })  # fmt: skip

    def decides(self) -> dict[str, Any]:
        """The options that decide the statistics of a set. A reference applies only to scans with
        equal values."""
        return {
            "networks": self.networks, "size": self.size, "model": self.model,
            "recipe": self.recipe.decides(),
        }  # fmt: skip


def _path(key: str, value: object) -> Path | None:
    return None if value is None else absolute(key, validation.text(key, value))
