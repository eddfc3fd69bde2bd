"""The demo's training step in a plain PyTorch loop on one fixed batch, without Lightning and data
loading.

    python -m tests.bench.floor      prints the seconds of one step
"""

from __future__ import annotations

import subprocess
import time

import torch

from backdoor_lab.training.device import machine_of
from backdoor_lab.training.models import build_model
from tests.bench.measuring import command, surroundings

MODEL = {"name": "resnet18", "width": 16, "stem": "cifar"}
BATCH, SIDE, STEPS = 32, 12, 400
TRAINER = {"accelerator": "cpu", "precision": "auto", "channels_last": True, "threads": 1,
           "progress": "none", "checkpoint": False, "cells_per_gpu": 1}  # fmt: skip


def side_by_side(processes: int) -> float:
    """The mean seconds of a step in `processes` processes that run at the same time, with one
    thread each."""
    asked = command("tests.bench.floor")
    environment = surroundings(OMP_NUM_THREADS="1")
    started = [subprocess.Popen(asked, env=environment, stdout=subprocess.PIPE, text=True)
               for _ in range(processes)]  # fmt: skip
    said = [each.communicate()[0] for each in started]
    assert all(each.returncode == 0 for each in started), said
    return sum(map(float, said)) / processes


def _step() -> float:
    """Time steps for a while and return the mean of the middle part. In the first and the last
    part, other processes may not be running."""
    torch.set_num_threads(1)
    machine = machine_of(TRAINER)
    torch.manual_seed(0)
    net = build_model(MODEL, channels=3, classes=10, seed=0).train()
    net = net.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-3, fused=True
    )
    images = torch.randn(BATCH, 3, SIDE, SIDE).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (BATCH,))

    def steps(count: int) -> float:
        began = time.perf_counter()
        for _ in range(count):
            with machine.autocast():
                loss = torch.nn.functional.cross_entropy(net(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return (time.perf_counter() - began) / count

    steps(STEPS // 4)
    seconds = steps(STEPS)
    steps(STEPS // 4)
    return seconds


if __name__ == "__main__":
    print(_step())
