"""Benchmarks a training step of ResNet18: with Lightning, without Lightning, and in a typical
loop."""

from __future__ import annotations

import tempfile
import time
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor, nn

from backdoor_lab.core.types import TrainingSet
from backdoor_lab.training.data_loader import BatchLoader
from backdoor_lab.training.device import ComputeDevice, machine_of
from backdoor_lab.training.models import build_model
from backdoor_lab.training.recipe import Recipe, optimizer_of
from backdoor_lab.training.train import TrainingJob, fit, new_classifier
from tests.bench.data import MEAN, STD, loader
from tests.bench.measuring import Figure, by_turns, ratio, threads

BATCH = 128


def run() -> list[Figure]:
    """Measure images per second at width 64, and the overhead of Lightning at widths 64, 16 and
    8."""
    figures = _beside_others(steps=5, rounds=4)
    return figures + _beside_bare(16, steps=4, rounds=8) + _beside_bare(8, steps=8, rounds=8)


def _beside_others(steps: int, rounds: int) -> list[Figure]:
    job, machine = _job(64, steps), _machine()
    plain = _Plain(job)
    sides = {"lightning": lambda: _lightning(job, machine), "bare": lambda: bare(job, machine),
             "plain": plain.train}  # fmt: skip
    found = by_turns(sides, rounds)
    images = steps * BATCH
    number = "bf16" if machine.bf16 else "fp32"
    said = f"{machine.threads} threads, {number}, channels last"
    return [
        Figure("width 64: Lightning training", images / min(found["lightning"]), "images/s",
               note=said),
        Figure("width 64: plain loop (fp32, NCHW, PIL)", images / min(found["plain"]), "images/s"),
        Figure("width 64: over the plain loop", ratio(found, "plain", "lightning"), "x", ">= 2.5"),
        _cost(64, found, "<= 5"),
    ]  # fmt: skip


def _beside_bare(width: int, steps: int, rounds: int) -> list[Figure]:
    job, machine = _job(width, steps), _machine()
    sides = {"lightning": lambda: _lightning(job, machine), "bare": lambda: bare(job, machine)}
    found = by_turns(sides, rounds)
    images = steps * BATCH
    rate = Figure(f"width {width}: Lightning training", images / min(found["lightning"]),
                  "images/s")  # fmt: skip
    return [rate, _cost(width, found, "<= 10")]


def _cost(width: int, found: dict[str, list[float]], target: str) -> Figure:
    more = 100 * (ratio(found, "lightning", "bare") - 1)
    return Figure(f"width {width}: more than our bare loop", more, "%", target)


def _machine() -> ComputeDevice:
    return machine_of(
        {"accelerator": "cpu", "precision": "auto", "channels_last": True, "threads": threads(),
         "progress": "none", "checkpoint": True, "cells_per_gpu": 1}
    )  # fmt: skip


def _job(width: int, steps: int) -> TrainingJob:
    n = BATCH * steps
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=generator)
    names = tuple("abcdefghij")
    training = TrainingSet(images, images[:0], torch.arange(n), torch.arange(n) % 10, names, "")
    said: dict[str, Any] = {"name": "bench", "epochs": 1, "batch_size": BATCH, "lr": 0.1,
                            "weight_decay": 5e-4, "crop_padding": 4, "flip": True}  # fmt: skip
    model = {"name": "resnet18", "width": width, "stem": "cifar"}
    mean, std = torch.tensor(MEAN) * 255, torch.tensor(STD) * 255
    return TrainingJob(model, Recipe.of(said), training, 0, mean, std)


class _Clock(pl.Callback):
    """Measures the seconds of the training loop: batches, augmentation, steps and logging."""

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.began = time.perf_counter()

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.seconds = time.perf_counter() - self.began


def _lightning(job: TrainingJob, machine: ComputeDevice) -> float:
    clock = _Clock()
    with tempfile.TemporaryDirectory() as folder:
        fit(job, machine, callbacks=[clock], logger=CSVLogger(folder))
    return clock.seconds


def bare(job: TrainingJob, machine: ComputeDevice) -> float:
    """The seconds of one epoch in a loop without Lightning."""
    batches = BatchLoader(job.training, job.recipe, seed=0, device=machine.device)
    module = new_classifier(job, machine, len(batches)).train()
    optimizer, schedule = optimizer_of(job.recipe, module.net, len(batches))
    began = time.perf_counter()
    for images, labels in batches:
        with machine.autocast():
            loss = module.loss(module(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return time.perf_counter() - began


class _Plain:
    """A typical training loop: float32, NCHW, PIL transforms in a DataLoader, and the loss is read
    at every step."""

    def __init__(self, job: TrainingJob) -> None:
        self.net = build_model(job.model, channels=3, classes=10, seed=0).train()
        self.batches = loader(job.training.base, job.training.labels, BATCH)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1, momentum=0.9,
                                         weight_decay=5e-4)  # fmt: skip

    def train(self) -> float:
        torch.set_num_threads(threads())
        total, criterion = 0.0, nn.CrossEntropyLoss()
        began = time.perf_counter()
        for images, labels in self.batches:
            loss: Tensor = criterion(self.net(images), labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            total += loss.item()
        return time.perf_counter() - began
