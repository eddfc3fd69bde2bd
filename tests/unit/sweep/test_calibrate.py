"""Calibration measures a machine as a sweep will use it: processes, threads, other load."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from backdoor_lab.core.resources import busy_seconds
from backdoor_lab.core.store import Store
from backdoor_lab.data.cache import open_dataset
from backdoor_lab.pipeline.parts import source_of
from backdoor_lab.plugins.trust import Trust, trust
from backdoor_lab.sweep import calibrate as module
from backdoor_lab.sweep.calibrate import Bench, Calibration, Rate, Sample, calibrate
from backdoor_lab.sweep.preflight import Preflight
from tests.helpers.cells import CPU, cell_of, configuration


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHORTEST", 0.05)
    monkeypatch.setattr(module, "PROCESSOR_TIME", 0.05)
    monkeypatch.setattr(module, "WARM_UP", 2)


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize("batch", [32, 150])
def test_calibration_with_zero_processes_runs_in_this_process(tmp_path: Path, batch: int) -> None:
    """All speeds are positive, even if an epoch has fewer steps than the warm-up. The start time is
    the CPU time of this process."""
    cell = cell_of(tmp_path, f"recipe.batch_size={batch}")
    tried = calibrate({"kind": cell}, CPU, 0)
    speed = tried.speeds["kind"]
    assert min(speed.train.now, speed.measure.now, speed.extract.now) > 0
    assert 0 < speed.train.idle <= speed.train.now
    assert 0 < tried.start <= time.process_time()
    assert (tried.processes, tried.threads) == (1, 1)


SOURCE = """
import numpy as np
from backdoor_lab.data.base import Arrays, Source, Split

class Bars(Source):
    def __init__(self, *, name: str = "bars") -> None:
        super().__init__(name=name)
    def identity(self):
        return {}
    def read(self):
        images = np.arange(90 * 108, dtype=np.uint8).reshape(90, 3, 6, 6)
        split = Split(images, np.arange(90) % 3)
        return Arrays(split, split, ("a", "b", "c"))
"""


@pytest.mark.usefixtures("brief")
def test_calibration_processes_trust_the_plugins_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bars.py").write_text(SOURCE)
    words = ("plugins=[bars.py]", "dataset=bars", "target=b", "ratio=0.2")
    cell = Preflight().cell(configuration(tmp_path, *words, data=()))
    try:
        tried = calibrate({"kind": cell}, CPU, 1)
    finally:
        trust(Trust())
    assert tried.processes == 1
    assert tried.speeds["kind"].train.now > 0


def test_calibration_uses_as_many_processes_as_the_sweep(tmp_path: Path) -> None:
    """Each process trains on the images of the cell, and measures when all processes are ready."""
    tried = calibrate({"kind": cell_of(tmp_path)}, CPU, 2)
    assert (tried.processes, tried.threads) == (2, 1)
    assert tried.start > 0
    assert tried.speeds["kind"].train.now > 0
    if Path("/proc/stat").exists():
        assert tried.others is not None
    assert not [*tmp_path.glob("train/*")]


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize("bf16", [False, True])
def test_calibration_trains_the_network_as_the_cell_would(
    tmp_path: Path, bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It trains in training mode, with the machine's precision and memory format and the recipe's
    batch size, and computes features in float32."""
    cell = cell_of(tmp_path, "recipe.batch_size=16", "recipe.crop_padding=1")
    machine = replace(CPU, bf16=bf16)
    data = open_dataset(source_of(cell.config), Store(tmp_path))
    seen: list[tuple[bool, bool, int]] = []
    bench = Bench(cell, data, machine)

    def learned(_: Any, inputs: tuple[Any, ...], __: Any) -> None:
        logits, labels = inputs
        half = logits.dtype == torch.bfloat16
        seen.append((bench.module.net.training, half, len(labels)))

    bench.module.loss.register_forward_hook(learned)
    formats: list[bool] = []
    usual = module.predictions
    monkeypatch.setattr(
        module, "predictions",
        lambda net, images, used: formats.append(used.bf16) or usual(net, images, used),
    )  # fmt: skip
    bench.warm_up()
    bench.measure()
    assert set(seen) == {(True, bf16, 16)}
    assert formats == [bf16, False] * 2


def test_the_idle_speed_equals_the_measured_speed_if_no_time_was_spent_waiting() -> None:
    assert Sample(10, 20.0, 20.0).rate(1.0) == Rate(2.0, 2.0)


def test_time_waiting_for_a_core_is_not_counted_as_work() -> None:
    """The process got a quarter of a core in the first sample, and one of two cores in the
    second."""
    assert Sample(10, 20.0, 5.0).rate(1.0) == Rate(2.0, 0.5)
    assert Sample(10, 20.0, 20.0).rate(2.0) == Rate(2.0, 1.0)


class Scripted:
    """A worker that returns made-up samples, measured while it had half a core."""

    threads: list[int]

    def __init__(self) -> None:
        self.threads = []

    def send(self, job: Any) -> None:
        self.job = job

    def result(self) -> Any:
        if self.job[0] == "prepare":
            self.threads.append(self.job[2].threads)
            return 7.0
        samples = tuple(Sample(100, 10.0, 5.0) for _ in range(3))
        return samples, 5.0


def scripted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, threads: int, busy: float
) -> tuple[Calibration, Scripted]:
    """A calibration on two cores that were busy for `busy` core-seconds in ten seconds."""
    clock, used = iter([0.0, 10.0] * 2), iter([0.0, busy] * 2)
    monkeypatch.setattr(module, "cores", lambda: 2)
    monkeypatch.setattr(module, "busy_seconds", lambda: next(used))
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    worker = Scripted()
    machine = replace(CPU, threads=threads)
    return module._tried({"kind": cell_of(tmp_path)}, machine, [worker], None), worker


def test_the_load_of_other_processes_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In ten seconds two cores were busy for 17 core-seconds, of which the worker used five."""
    tried, _ = scripted(monkeypatch, tmp_path, threads=1, busy=17.0)
    assert tried.others == pytest.approx(1.2, abs=0.1)
    assert tried.disturbed
    assert tried.speeds["kind"].train == Rate(0.1, 0.05)
    assert (tried.start, tried.single) == (7.0, None)


def test_the_load_of_other_processes_is_zero_on_an_idle_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried, worker = scripted(monkeypatch, tmp_path, threads=2, busy=5.5)
    assert not tried.disturbed
    assert tried.single is None
    assert worker.threads == [2]
    assert not replace(tried, others=None).disturbed


def test_calibration_with_several_threads_is_repeated_with_one_if_the_machine_is_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each kind is announced once."""
    tried, worker = scripted(monkeypatch, tmp_path, threads=2, busy=17.0)
    assert worker.threads == [2, 1]
    assert capsys.readouterr().err.splitlines() == [
        "  kind 1 of 1 ...", "  once more with one thread, for comparison ...",
    ]  # fmt: skip
    assert tried.single is not None
    assert (tried.threads, tried.single.threads) == (2, 1)


def test_the_busy_time_includes_only_the_cores_available_to_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """User, nice, system, interrupt and stolen time count; idle time and I/O wait do not."""
    (tmp_path / "proc").mkdir()
    lines = [
        "cpu  9 9 9 9 9 9 9 9", "cpu0 100 10 1 9999 9999 20 2 300 7 7", "cpu1 1000 0 0 0 0 0 0 0",
        "cpu10 5000 0 0 0 0 0 0 0", "intr 5",
    ]  # fmt: skip
    (tmp_path / "proc/stat").write_text("\n".join(lines))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    monkeypatch.setattr(os, "sysconf", lambda name: 100)
    assert busy_seconds(tmp_path) == pytest.approx(4.33)
    assert busy_seconds(tmp_path / "none") is None
