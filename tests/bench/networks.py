"""Benchmarks airbench against ResNet18: training images per second, and operations per image."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from backdoor_lab.core.types import TrainingSet
from backdoor_lab.training.device import ComputeDevice
from backdoor_lab.training.recipe import Recipe
from backdoor_lab.training.train import TrainingJob, new_classifier
from tests.bench.data import MEAN, STD
from tests.bench.measuring import Figure, by_turns, threads
from tests.bench.step import bare

BATCH, STEPS, ROUNDS = 128, 2, 3
NETWORKS = {
    "airbench": {"name": "airbench", "width": 64, "stem": None},
    "airbench-w32": {"name": "airbench", "width": 32, "stem": None},
    "airbench-w16": {"name": "airbench", "width": 16, "stem": None},
    "resnet18": {"name": "resnet18", "width": 64, "stem": "cifar"},
    "resnet18-w16": {"name": "resnet18", "width": 16, "stem": "cifar"},
}


def run() -> list[Figure]:
    """Measure batches of 128 images of 32x32 with crop and flip, in float32 and bfloat16. Reports
    the best of three rounds. A multiplication and an addition count as two operations."""
    figures = []
    for name, model in NETWORKS.items():
        job = _job(model)
        sides = {
            number: lambda job=job, bf16=bf16: _seconds(job, _machine(bf16))
            for number, bf16 in (("fp32", False), ("bf16", True))
        }
        found = by_turns(sides, ROUNDS)
        figures += [
            Figure(f"{name}: training, {number}", BATCH * STEPS / min(seconds), "images/s",
                   note=f"{threads()} threads, channels last")
            for number, seconds in found.items()
        ]  # fmt: skip
        figures.append(Figure(f"{name}: forward and backward", gflop(job), "GFLOP/image"))
    return figures


def gflop(job: TrainingJob) -> float:
    """The operations of the forward and backward pass of one image, in units of 1e9."""
    module = new_classifier(job, _machine(bf16=False)).train()
    with FlopCounterMode(display=False) as counter:
        module(job.training.base[:2]).sum().backward()
    return float(counter.get_total_flops()) / 2 / 1e9


def _job(model: dict[str, Any]) -> TrainingJob:
    n = BATCH * STEPS
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=generator)
    names = tuple("abcdefghij")
    training = TrainingSet(images, images[:0], torch.arange(n), torch.arange(n) % 10, names, "")
    recipe = Recipe("bench", epochs=1, batch_size=BATCH, lr=0.01, crop_padding=2, flip=True)
    return TrainingJob(
        model, recipe, training, 0, torch.tensor(MEAN) * 255, torch.tensor(STD) * 255
    )


def _machine(bf16: bool) -> ComputeDevice:
    return ComputeDevice(torch.device("cpu"), bf16=bf16, channels_last=True, threads=threads())


def _seconds(job: TrainingJob, machine: ComputeDevice) -> float:
    torch.set_num_threads(machine.threads)
    return bare(job, machine)
