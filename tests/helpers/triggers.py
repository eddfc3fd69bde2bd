"""Triggers of the public interface with few optimization steps, and the cells that use them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from backdoor_lab.api.methods import defaults, list_methods
from backdoor_lab.api.named_triggers import get_trigger
from backdoor_lab.api.triggers import Trigger
from backdoor_lab.attacks.poison import clean
from backdoor_lab.core.artifacts import WEIGHTS
from backdoor_lab.core.store import Store
from backdoor_lab.pipeline.after_training import Attacked
from backdoor_lab.pipeline.cell import Cell
from backdoor_lab.pipeline.cell_pipeline import CellPipeline
from backdoor_lab.pipeline.progress import Progress
from backdoor_lab.sweep.preflight import Preflight
from backdoor_lab.training.device import machine_of
from backdoor_lab.training.evaluate import channel_stats
from backdoor_lab.training.train import TrainingJob, blank_classifier
from tests.helpers.cells import BRIEF_STEPS, configuration
from tests.helpers.picture_sets import SIDE, pictures

NAMES = list_methods("triggers")


def brief_options(name: str) -> dict[str, Any]:
    """The options of a trigger that shorten its optimization."""
    steps = {"steps": 2, "warmup_epochs": 1}
    return {k: v for k, v in steps.items() if k in defaults("triggers", name)} | BRIEF_STEPS.get(
        name, {}
    )


def brief(name: str) -> Trigger:
    """A trigger with few optimization steps."""
    return get_trigger(name, **brief_options(name))


def surrogate(channels: int = 3, classes: int = 4) -> nn.Module:
    """A small network with random weights, for images in 0..1, in train mode."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return nn.Sequential(
            nn.Conv2d(channels, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, classes),
        )  # fmt: skip


def fitted(name: str, channels: int = 3, n: int = 40) -> Trigger:
    """A trigger that was fitted, where necessary, on random images of four classes."""
    trigger = brief(name)
    if not trigger.requires_train:
        return trigger
    model = surrogate(channels) if "model" in trigger.requires_train else None
    source = 2 if "source" in trigger.requires_train else None
    labels = torch.arange(n) % 4
    return trigger.fit(pictures(n, channels), labels, target=1, source=source, model=model)


def attacked(root: Path, *overrides: str) -> tuple[Cell, Attacked, nn.Module | None]:
    """Poisons the training set of a tiny cell as the command line does. Returns the cell, the
    result and the surrogate, which takes images in 0..255; None if the trigger uses none."""
    config = configuration(root, f"dataset.size={SIDE}", *overrides)
    preflight = Preflight()
    cell = preflight.cell(config)
    preflight.publish()
    machine = machine_of(config["trainer"])
    with Progress(root / "cell", "", "none") as progress:
        chain = CellPipeline(cell, Store(root), machine, progress)
        found = chain.attack()
    if "surrogate" not in chain.stages:
        return cell, found, None
    mean, std = channel_stats(found.data.train.images)
    job = TrainingJob(cell.model, cell.recipe, clean(found.data.train), 0, mean, std)
    model = blank_classifier(job, machine).eval()
    model.net.load_state_dict(WEIGHTS.read(chain.stages["surrogate"].path))
    return cell, found, model
