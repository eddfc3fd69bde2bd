"""Tiny cells whose defense is run by the command line's code, with what that defense was given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
import torch
from torch import Tensor, nn

from backdoor_lab.core.types import Features, FilterResult
from backdoor_lab.defenses.context import DefenseContext
from backdoor_lab.pipeline import after_training
from backdoor_lab.pipeline.cell import Cell
from backdoor_lab.training.classifier import Classifier
from backdoor_lab.training.models import build_model
from tests.helpers.cells import lasting, run_here


@dataclass(frozen=True)
class DefendedCell:
    """A cell after its defense. `features` and `clean_features` are None for a repair, `context` is
    None for a filter on features. `result` is the filter result or the repaired network."""

    cell: Cell
    images: Tensor
    labels: Tensor
    n_poisoned: int
    features: Tensor | None
    clean_features: Features | None
    context: DefenseContext | None
    result: Any

    @property
    def verdict(self) -> FilterResult:
        assert isinstance(self.result, FilterResult)
        return self.result

    def arguments(self) -> dict[str, Any]:
        """The arguments of `Filter.fit` or `Repair.fit` for the same model and clean data."""
        context = self.context
        if context is None:
            held = self.clean_features
            return {} if held is None else {"clean": (held.values, held.labels)}
        clean = context.clean
        return {
            "model": Restarted(self.cell, context.network()),
            "images": self.images,
            "normalize": "bytes",
            "recipe": self.cell.config["recipe"],
            "clean": None if clean is None else (clean.images, clean.labels),
        }


class Restarted(nn.Module):
    """A cell's network with a method ``reset_parameters`` that draws the initial weights as the
    cell does, from the seed of torch's generator."""

    def __init__(self, cell: Cell, network: nn.Module) -> None:
        super().__init__()
        assert isinstance(network, Classifier)
        self.network, self.config, self.classes = network, cell.model, len(cell.classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)

    def reset_parameters(self) -> None:
        channels = self.network.mean.shape[1]
        made = build_model(
            self.config, channels=channels, classes=self.classes, seed=torch.initial_seed()
        )
        self.network.net.load_state_dict(made.state_dict())


def defended(root: Path, *overrides: str) -> DefendedCell:
    """Runs a tiny cell with the store `root`. The cell's network is trained by the first call."""
    found: list[DefendedCell] = []
    filter_stage, repair_stage = after_training.filter_stage, after_training.repair_stage

    def filtering(cell: Any, poisoned: Any, evidence: Any, *rest: Any) -> Any:
        made = filter_stage(cell, poisoned, evidence, *rest)
        training, held = poisoned.training, evidence.held_out
        context = None if evidence.provided is None else evidence.provided.context
        found.append(
            DefendedCell(
                cell, training.gather(torch.arange(len(training))), training.labels,
                len(poisoned.source_index), evidence.features.values,
                None if held is None else held[0], context, made[0],
            )
        )  # fmt: skip
        return made

    def repairing(cell: Any, repair: Any, training: Any, provided: Any, *rest: Any) -> Any:
        made = repair_stage(cell, repair, training, provided, *rest)
        images = training.gather(torch.arange(len(training)))
        found.append(
            DefendedCell(
                cell, images, training.labels, 0, None, None, provided.context, made[0]
            )
        )  # fmt: skip
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(after_training, "filter_stage", filtering)
        patch.setattr(after_training, "repair_stage", repairing)
        lasting(run_here(root, root / "cells" / str(crc32(repr(overrides).encode())), *overrides))
    (only,) = found
    return only
