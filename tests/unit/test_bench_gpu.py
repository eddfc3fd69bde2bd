"""The GPU benchmarks run here in their tiny form. No training step waits for the GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from backdoor_lab.attacks.pixel import Pixel
from backdoor_lab.training.evaluate import extract
from backdoor_lab.training.train import fit, new_classifier
from tests.bench import gpu, measuring
from tests.helpers.cells import CPU, job


@pytest.fixture(autouse=True)
def reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(measuring, "REPORTS", tmp_path)
    return tmp_path


def test_each_part_of_the_gpu_benchmark_runs_once_at_tiny_size(
    reports: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every part writes its record immediately. Repeating the command computes nothing."""
    parts = [name for name in gpu.PARTS if name != "table"]  # It starts another process.
    assert gpu.main(["--tiny", *parts]) == 0
    written = {path.name: path.read_bytes() for path in reports.iterdir()}
    assert set(written) == {f"gpu_tiny_{name}.json" for name in parts}
    for content in map(json.loads, written.values()):
        assert content["figures"]
        assert content["versions"]["torch"]
        assert all(each["value"] >= 0 for each in content["figures"])
    assert gpu.main(["--tiny", *parts]) == 0
    assert {path.name: path.read_bytes() for path in reports.iterdir()} == written
    assert capsys.readouterr().out.count("kept from before") == len(parts)


def test_without_a_gpu_the_benchmarks_are_refused_and_the_error_suggests_the_tiny_option(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert gpu.main([]) == 2
    assert "--tiny" in capsys.readouterr().err


@pytest.mark.parametrize("late", [False, True])
def test_no_training_step_synchronizes_with_the_gpu(late: bool) -> None:
    """A step gathers and augments images, applies the trigger, and runs the forward pass, the
    backward pass, the optimizer and Lightning's own loop."""
    asked = job(epochs=2, crop_padding=1, flip=True, cutout=2, schedule="onecycle", warmup=0.2)
    if late:
        rows = asked.training.base[:4]
        training = asked.training.__class__(
            asked.training.base, rows, asked.training.index, asked.training.labels,
            asked.training.classes, "", Pixel(position=(-1, -1), color=255),
        )  # fmt: skip
        asked = job(training, epochs=2, crop_padding=1)
    watch = gpu.Watch()
    with watch.watching(CPU.device):
        fit(asked, CPU, callbacks=[watch])
    assert watch.waits == []


def test_features_are_computed_without_tf32() -> None:
    """On a GPU, TF32 would round the inputs of convolutions. Afterwards the setting is restored."""
    asked, seen = job(), []
    module = new_classifier(asked, CPU)
    module.net.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    before = torch.backends.cudnn.allow_tf32
    extract(module, asked.training, "penultimate", CPU)
    assert seen == [False]
    assert torch.backends.cudnn.allow_tf32 == before


@pytest.mark.parametrize("wait", ["item", "mask"])
def test_operations_that_wait_for_the_gpu_are_detected(wait: str) -> None:
    class Waits(pl.Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, step: int) -> None:
            images, labels = batch
            _ = int(labels[0]) if wait == "item" else images[labels == 1]

    watch = gpu.Watch()
    with watch.watching(CPU.device):
        fit(job(epochs=1), CPU, callbacks=[watch, Waits()])
    assert len(watch.waits) == 4  # Of six steps, the first and the last do not count.
