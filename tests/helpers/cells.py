"""Tiny cells for tests. They are composed in the test's process and run on one thread."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from torch import Tensor

import backdoor_lab.run  # noqa: F401  (registers the resolvers that conf/ uses)
from backdoor_lab.core.store import Store
from backdoor_lab.core.types import TrainingSet
from backdoor_lab.pipeline.cell import Cell
from backdoor_lab.pipeline.cell_pipeline import CellPipeline, run_cell
from backdoor_lab.pipeline.progress import Progress
from backdoor_lab.run import conf_dir
from backdoor_lab.sweep.compose import plain
from backdoor_lab.sweep.preflight import Preflight
from backdoor_lab.training.device import ComputeDevice, machine_of
from backdoor_lab.training.evaluate import channel_stats
from backdoor_lab.training.recipe import Recipe
from backdoor_lab.training.train import TrainingJob

# Every number that a test relies on is set here, so that tests do not depend on defaults in conf/.
DRAWN = (
    "dataset=synthetic", "dataset.size=8", "dataset.per_class_train=20",
    "dataset.per_class_test=5", "dataset.noise=12",
)  # fmt: skip
SMALL = (
    "model.width=4",
    "recipe=demo", "recipe.epochs=1", "recipe.lr=0.05", "recipe.batch_size=32", "ratio=0.3",
    "trainer=cpu", "trainer.threads=1", "trainer.precision=32", "trainer.progress=none",
    "logger=none",
)  # fmt: skip
TINY = (*DRAWN, *SMALL)
CPU = ComputeDevice(torch.device("cpu"), bf16=False, channels_last=True, threads=1)


def configuration(root: Path, *overrides: str, data: tuple[str, ...] = DRAWN) -> dict[str, Any]:
    """Compose the plain configuration of a tiny cell, with `overrides` applied last."""
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        found = compose("config", [*data, *SMALL, f"store.root={root}", *overrides])
    return plain(found)


def cell_of(root: Path, *overrides: str) -> Cell:
    """Create a tiny cell that has passed every check."""
    return Preflight().cell(configuration(root, *overrides))


def run_here(
    root: Path, folder: Path, *overrides: str, data: tuple[str, ...] = DRAWN
) -> dict[str, Any]:
    """Run a tiny cell in this process. Returns its record."""
    config = configuration(root, *overrides, data=data)
    preflight = Preflight()
    cell = preflight.cell(config)
    preflight.publish()
    machine = machine_of(config["trainer"])
    chain = CellPipeline(cell, Store(root), machine, Progress(folder, "", "none"))
    folder.mkdir(parents=True, exist_ok=True)
    return run_cell(cell, folder, chain, command="test")


def lasting(record: dict[str, Any]) -> dict[str, Any]:
    """A copy of the record of a completed cell without the fields that may differ between two
    correct runs."""
    assert record["status"] == "done", record["status"]
    return {key: value for key, value in record.items() if key not in ("run", "seal")}


def recipe(**changes: Any) -> Recipe:
    """Create a small recipe without augmentation."""
    said = {"name": "t", "epochs": 2, "batch_size": 8, "lr": 0.05, "schedule": "constant"}
    return Recipe.of(said | changes)


BRIEF_STEPS: dict[str, dict[str, float]] = {
    "low_frequency_authors": {"images": 8, "fooling_rate": 0, "max_iter": 30},
    "narcissus": {"lr": 1e6},
    "narcissus_authors": {"lr": 1e6},
}
"""Options of triggers for a few optimization steps. RAdam's first steps change no pixel at the
default learning rate."""


def training_set(images: Tensor, labels: Tensor, **changes: Any) -> TrainingSet:
    """Create a training set without poison."""
    said: dict[str, Any] = {
        "base": images, "rows": images[:0], "index": torch.arange(len(images)),
        "labels": labels, "classes": ("dark", "bright"), "digest": "", "late_trigger": None,
    }  # fmt: skip
    return TrainingSet(**said | changes)


def toy_set(n: int = 48) -> TrainingSet:
    """Random images of two classes, with a bright or a dark center, that are learned in a few
    steps."""
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 120, (n, 3, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.arange(n) % 2
    images[labels == 1, :, 2:6, 2:6] += 120
    return training_set(images, labels)


def job(training: TrainingSet | None = None, seed: int = 1, **changes: Any) -> TrainingJob:
    """A training job for a very narrow ResNet18, by default on the images of `toy_set`."""
    training = toy_set() if training is None else training
    model = {"name": "resnet18", "width": 4, "stem": "cifar"}
    mean, std = channel_stats(training.base)
    return TrainingJob(model, recipe(**changes), training, seed, mean, std)


def command(*arguments: str) -> list[str]:
    """The command line `python -m backdoor_lab` with these arguments."""
    return [sys.executable, "-m", "backdoor_lab", *arguments]


def environment(**changes: str) -> dict[str, str]:
    """Environment variables for a program in a test: one thread, no GPU."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **changes}


def started(cwd: Path, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run the program with `arguments`, and wait until it ends."""
    return subprocess.run(
        command(*arguments), cwd=cwd, env=environment(**changes), capture_output=True,
        text=True, timeout=240, check=False,
    )  # fmt: skip


def signalled(
    cwd: Path, number: signal.Signals, ready: Callable[[], bool], *arguments: str
) -> tuple[int, float, str]:
    """Start the program, and send it a signal as soon as `ready()` is true. Returns the exit code,
    the seconds until it ended, and stderr."""
    program = subprocess.Popen(
        command(*arguments), cwd=cwd, env=environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        limit = time.monotonic() + 120
        while not ready() and program.poll() is None and time.monotonic() < limit:
            time.sleep(0.02)
        assert program.poll() is None, program.communicate()
        program.send_signal(number)
        sent = time.monotonic()
        _, said = program.communicate(timeout=60)
    finally:
        program.kill()
    return program.returncode, time.monotonic() - sent, said
