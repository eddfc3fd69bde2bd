"""Benchmarks a scan without canaries: ten classes of 500 synthetic images of 32x32 pixels."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from backdoor_lab.scan.__main__ import main
from backdoor_lab.training.classifier import Classifier
from tests.bench.measuring import Figure

IMAGES = 5000
SECONDS = {"AVX512": 240, "AVX2": 600}
"""The seconds allowed, by the vector instructions that PyTorch uses."""
WORDS = (
    "dataset=synthetic", "dataset.size=32", "dataset.per_class_train=500",
    "dataset.per_class_test=1", "scan.canaries=none", "trainer=cpu", "trainer.progress=none",
)  # fmt: skip


def run() -> list[Figure]:
    """Measure the seconds of a scan in this process, and count the images that its networks see."""
    seen = {True: 0, False: 0}

    def count(module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        if isinstance(module, Classifier):
            seen[module.training] += len(inputs[0])

    hook = torch.nn.modules.module.register_module_forward_pre_hook(count)
    try:
        with tempfile.TemporaryDirectory() as name, Path(os.devnull).open("w") as nothing:
            began = time.perf_counter()
            with contextlib.redirect_stdout(nothing):
                code = main([*WORDS, f"store.root={name}/store", "--out", f"{name}/scan"])
            seconds = time.perf_counter() - began
    finally:
        hook.remove()
    assert code in (0, 3, 4), code
    limit = SECONDS.get(torch.backends.cpu.get_cpu_capability(), SECONDS["AVX2"])
    return [
        Figure("scan of 5,000 images without canaries", seconds, "s", f"<= {limit}"),
        Figure("passes over the images in training", seen[True] / IMAGES),
        Figure("passes over the images without training", seen[False] / IMAGES),
        Figure("exit code", code),
    ]
