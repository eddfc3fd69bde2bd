"""Trains the networks of a scan, and computes the features of the examined images. Both are one
stage of the store: the weights are needed for nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from backdoor_lab import identity
from backdoor_lab.core import failpoints, shutdown, streams
from backdoor_lab.core.artifacts import TensorFile
from backdoor_lab.core.rng import derive
from backdoor_lab.core.store import Artifact, Store
from backdoor_lab.core.streams import Stream
from backdoor_lab.core.types import TrainingSet
from backdoor_lab.scan.options import ScanOptions
from backdoor_lab.training.device import ComputeDevice
from backdoor_lab.training.evaluate import (
    accuracy,
    channel_stats,
    extract_layers,
    training_accuracy,
)
from backdoor_lab.training.train import TrainingJob, fit

STAGE = "scan_network"
LAYERS = {"middle": "group2:pool", "last": "penultimate", "logits": "head"}
"""The layers of airbench whose features are used, by their names in `LAYERS_FILE`."""
LAYERS_FILE = TensorFile("layers.safetensors", tuple(LAYERS))
Report = Callable[[int, int, int, float], None]
"""Is called after each epoch with the number of the network, the epoch, the number of epochs and
the seconds per epoch."""


@dataclass(frozen=True)
class Layers:
    """Features of n images at several layers, float32 (n, d) each, by name. `id` identifies the
    stored stage, `accuracy` is the network's accuracy on its own training images, and `seconds`
    the time it took to train it."""

    values: dict[str, Tensor]
    id: str
    accuracy: float
    seconds: float

    def first(self, n: int) -> Layers:
        """Returns the features of the first `n` images."""
        return replace(self, values={name: rows[:n] for name, rows in self.values.items()})


def network_stage(
    training: TrainingSet, shown: TrainingSet, number: int, options: ScanOptions, store: Store,
    machine: ComputeDevice, *, purpose: Stream = streams.SCAN_NETWORK,
    report: Report | None = None,
) -> Layers:  # fmt: skip
    """Trains network `number` on `training` and computes the features of the images `shown`, or
    reads the stored features."""
    machine = replace(machine, bf16=False)  # A reference must apply to every machine.

    def make(folder: Path) -> dict[str, Any]:
        mean, std = channel_stats(training.base)
        inputs = network_inputs(training, shown, number, options, purpose)
        job = TrainingJob(options.model, options.recipe, training, inputs["seed"], mean, std)
        watch = [_Watch(number, report)]
        module = fit(job, machine, scratch=store.scratch(STAGE, inputs), callbacks=watch)
        failpoints.point(f"{STAGE}.trained")
        values = extract_layers(module, shown, list(LAYERS.values()), machine)
        found = {name: values[layer].contiguous() for name, layer in LAYERS.items()}
        LAYERS_FILE.write(folder, found)
        if shown is training:
            share = accuracy(found["logits"].argmax(dim=1), training.labels)
        else:
            share = training_accuracy(module, training, machine)
        return {"accuracy": share, "loss": module.history, "machine": machine.describe()}

    entry = store.get(STAGE, network_inputs(training, shown, number, options, purpose), make)
    return Layers(LAYERS_FILE.read(entry.path), entry.id, entry.meta["accuracy"], entry.seconds)


def network_inputs(
    training: TrainingSet, shown: TrainingSet, number: int, options: ScanOptions,
    purpose: Stream = streams.SCAN_NETWORK,
) -> dict[str, Any]:  # fmt: skip
    """Returns the inputs of a network's stage."""
    return {
        "version": identity.stage(STAGE),
        "training": training.digest,
        "shown": shown.digest,
        "model": [options.model, identity.model()],
        "recipe": options.recipe.decides(),
        # Random seeds: a reference must hold for every seed. Equal sets have equal seeds.
        "seed": derive(options.seed, purpose, int(training.digest[:15], 16), number),
    }


def stored(training: TrainingSet, options: ScanOptions, store: Store) -> list[Artifact]:
    """Returns the stored stages of the networks of a scan. Trains nothing."""
    inputs = [network_inputs(training, training, n, options) for n in range(options.networks)]
    found = [store.find(STAGE, each) for each in inputs]
    return [each for each in found if each is not None]


def seconds_per_epoch(training: TrainingSet, options: ScanOptions, machine: ComputeDevice) -> float:
    """Measures how long one epoch of training takes, on a few batches."""
    machine = replace(machine, bf16=False)
    mean, std = channel_stats(training.base)
    few = torch.zeros(len(training), dtype=torch.bool)
    few[: min(len(training), 8 * options.recipe.batch_size)] = True
    part = training.keep(few, "")
    recipe = replace(options.recipe, epochs=2)
    watch = _Watch(0, None)
    job = TrainingJob(options.model, recipe, part, 0, mean, std)
    fit(job, machine, callbacks=[watch])
    return watch.last * len(training) / len(part)


class _Watch(pl.Callback):
    """Reports each epoch, and ends the training if the process is asked to stop. `last` is the time
    that the last epoch took, in seconds."""

    def __init__(self, number: int, report: Report | None) -> None:
        self.number, self.report = number, report
        self.last = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.began = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        failpoints.point(f"{STAGE}.step")
        shutdown.check()

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.last = time.perf_counter() - self.began
        if self.report is not None:
            epochs = trainer.max_epochs or 0
            self.report(self.number, trainer.current_epoch + 1, epochs, self.last)
