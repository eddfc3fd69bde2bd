"""Measures how fast this machine trains and evaluates under the conditions of a sweep: with the
same number of processes and threads, network, images, batch size and precision."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import pytorch_lightning as pl
import torch

from backdoor_lab.attacks.poison import clean
from backdoor_lab.core import shutdown
from backdoor_lab.core.errors import StoreFullError
from backdoor_lab.core.resources import busy_seconds, cores
from backdoor_lab.core.store import Store
from backdoor_lab.core.types import Dataset
from backdoor_lab.data.cache import is_stored, open_dataset
from backdoor_lab.pipeline.cell import Cell
from backdoor_lab.plugins.trust import adopt, trusted
from backdoor_lab.sweep.launching.workers import Worker, WorkerDiedError
from backdoor_lab.sweep.preflight import Preflight
from backdoor_lab.training.data_loader import BatchLoader
from backdoor_lab.training.device import ComputeDevice
from backdoor_lab.training.evaluate import channel_stats, predictions
from backdoor_lab.training.train import TrainingJob, new_classifier, trainer_for

WARM_UP, WARM_UP_SECONDS = 10, 10.0
"""The measurement starts after this many training steps, or after this many seconds if the steps
take longer: the first steps are slower."""
SHORTEST, LONGEST = 3.0, 15.0
"""The minimum and maximum wall-clock seconds for which training is measured. In between, the
measurement ends after `PROCESSOR_TIME` seconds of CPU time."""
PROCESSOR_TIME = 2.0
TEST_IMAGES, MOST_PROCESSES = 1024, 32
BUSY = 0.15
"""If other processes use more than this share of the cores, the measurement counts as disturbed."""


@dataclass(frozen=True)
class Rate:
    """Seconds (per image, per cell or in total) under the machine's current load (`now`) and on an
    otherwise idle machine (`idle`)."""

    now: float
    idle: float


@dataclass(frozen=True)
class Speed:
    """The seconds per image in training, in evaluation, and in feature extraction."""

    train: Rate
    measure: Rate
    extract: Rate


@dataclass(frozen=True)
class Calibration:
    """The `speeds` of each kind of cell, measured in `processes` parallel processes with `threads`
    threads each. `start`: the CPU seconds that a process needs before its first cell. `others`: the
    number of cores that other processes kept busy, None if unknown. `single`: a second measurement
    with one thread per process, made only if other processes disturbed the first one."""

    speeds: dict[str, Speed]
    start: float
    processes: int
    threads: int
    others: float | None
    single: Calibration | None = None

    @property
    def disturbed(self) -> bool:
        """Whether other processes kept so many cores busy that the measured times are too long."""
        return self.others is not None and self.others >= BUSY * cores()


@dataclass(frozen=True)
class Sample:
    """The number of images processed, and the wall-clock and CPU seconds that this took."""

    images: int
    seconds: float
    processor: float

    def rate(self, usable: float | None) -> Rate:
        """The measured seconds per image, and an estimate for an idle machine: CPU seconds divided
        by `usable`, the number of cores that a process can use (None: ignore CPU time)."""
        now = self.seconds / self.images
        return Rate(now, now if usable is None else min(now, self.processor / self.images / usable))


Samples = tuple[Sample, Sample, Sample]


def calibrate(kinds: dict[str, Cell], machine: ComputeDevice, processes: int) -> Calibration:
    """Measure the speed of each kind of cell in `processes` parallel workers. If `processes` is 0,
    measure in this process, as for a single cell."""
    if not processes:
        return _tried(kinds, machine, [_Here()], time.process_time())
    workers = [Worker(_serve) for _ in range(min(processes, MOST_PROCESSES))]
    with tempfile.TemporaryDirectory(prefix="backdoor_lab-") as aside:
        try:
            kinds = {kind: _within_reach(cell, aside) for kind, cell in kinds.items()}
            return _tried(kinds, machine, workers, None)
        finally:
            for worker in workers:
                worker.retire()


def _within_reach(cell: Cell, aside: str) -> Cell:
    """A copy of the cell with a store that contains the data set, so that images are decoded once.
    If the cell's own store lacks the data set, uses a store in the temporary folder `aside`."""
    source, settings = cell.parts.data, cell.config["store"]
    if not is_stored(source, Store(settings["root"], read_only=True)):
        # If the disk is full, each worker decodes the images.
        with suppress(StoreFullError):
            open_dataset(source, Store(aside))
            settings = {**settings, "root": aside}
    return replace(cell, config={**cell.config, "store": settings})


def _tried(
    kinds: dict[str, Cell], machine: ComputeDevice, workers: Sequence[Any], start: float | None
) -> Calibration:
    found = _calibration(kinds, machine, workers, start)
    if found.disturbed and found.threads > 1 and machine.device.type == "cpu":
        print("  once more with one thread, for comparison ...", file=sys.stderr, flush=True)
        single = _calibration(kinds, replace(machine, threads=1), workers, start, again=True)
        return replace(found, single=single)
    return found


def _calibration(
    kinds: dict[str, Cell], machine: ComputeDevice, workers: Sequence[Any], start: float | None,
    *, again: bool = False,
) -> Calibration:  # fmt: skip
    speeds, starts, others = {}, [], []
    # If there are more threads than cores, threads wait for each other even on an idle machine.
    on_cpu = machine.device.type == "cpu"
    usable = min(machine.threads, cores() / len(workers)) if on_cpu else None
    for number, (kind, cell) in enumerate(kinds.items(), 1):
        if not again:
            print(f"  kind {number} of {len(kinds)} ...", file=sys.stderr, flush=True)
        ready = _all(workers, [("prepare", cell.config, _placed(machine, n), os.getpid(), trusted())
                               for n in range(len(workers))])  # fmt: skip
        starts += ready
        before, began, own = busy_seconds(), time.monotonic(), time.process_time()
        found: list[tuple[Samples, float]] = _all(workers, [("measure",)] * len(workers))
        spent = sum(used for _, used in found)
        if not isinstance(workers[0], _Here):
            spent += time.process_time() - own
        after, passed = busy_seconds(), time.monotonic() - began
        if before is not None and after is not None:
            others.append(max(0.0, (after - before - spent) / passed))
        speeds[kind] = _speed([samples for samples, _ in found], usable)
    return Calibration(
        speeds, max(starts, default=0.0) if start is None else start, len(workers),
        machine.threads, sum(others) / len(others) if others else None,
    )  # fmt: skip


def _all(workers: Sequence[Any], jobs: Sequence[Any]) -> list[Any]:
    """Run one job in each worker, all at the same time, and return the results."""
    for worker, job in zip(workers, jobs, strict=True):
        worker.send(job)
    try:
        return [worker.result() for worker in workers]
    except WorkerDiedError as death:
        # A cell would fail in the same way, with a more detailed message.
        raise RuntimeError(f"a calibration process ended with exit code {death.code}") from death


def _placed(machine: ComputeDevice, number: int) -> ComputeDevice:
    """The device for worker `number`: one of the GPUs in turn, or the device that all share."""
    if machine.device.type != "cuda":
        return machine
    return replace(machine, device=torch.device("cuda", number % torch.cuda.device_count()))


def _speed(found: Sequence[Samples], usable: float | None) -> Speed:
    """Returns the mean speed of all processes (see `Sample.rate`)."""
    means = []
    for samples in zip(*found, strict=True):
        rates = [sample.rate(usable) for sample in samples]
        n = len(rates)
        means.append(Rate(sum(r.now for r in rates) / n, sum(r.idle for r in rates) / n))
    return Speed(*means)


class _Here:
    """Replaces `Worker` in calibration: `send` stores a job, `result` runs it in this process."""

    def send(self, job: Any) -> None:
        self._job = job

    def result(self) -> Any:
        return _serve(self._job)


_benches: list[Bench] = []


def _serve(job: tuple[Any, ...]) -> Any:
    """Run one job in a worker. ``prepare`` sets up a cell and returns the CPU seconds that the
    process used before the warm-up, or 0 in the driver's process. ``measure`` returns the samples
    and the CPU seconds used."""
    if job[0] == "prepare":
        _, config, machine, driver, plugins = job
        adopt(plugins)
        cell = Preflight().cell(config)
        data = open_dataset(cell.parts.data, Store(cell.store_root, read_only=True))
        spent = time.process_time()
        _benches[:] = [Bench(cell, data, machine)]
        _benches[0].warm_up()
        return 0.0 if os.getpid() == driver else spent
    began = time.process_time()
    return _benches[0].measure(), time.process_time() - began


class Bench:
    """A cell's network and batches, set up to measure training and inference repeatedly."""

    def __init__(self, cell: Cell, data: Dataset, machine: ComputeDevice) -> None:
        self.data, self.machine = data, machine
        training = clean(data.train)
        mean, std = channel_stats(training.base)
        job = TrainingJob(cell.model, cell.recipe, training, 0, mean, std)
        torch.set_num_threads(machine.threads)
        self.batches = BatchLoader(training, cell.recipe, seed=0, device=machine.device)
        self.module = new_classifier(job, machine, total_steps=10**6)

    def warm_up(self) -> None:
        """Run training steps and forward passes that are not measured."""
        self._trained(lambda steps, seconds, _: steps >= WARM_UP or seconds > WARM_UP_SECONDS)
        self._passed(bf16=self.machine.bf16)
        self._passed(bf16=False)

    def measure(self) -> Samples:
        """Measures the time of training, of evaluation and of computing features (in float32)."""
        trained = self._trained(_long_enough)
        return trained, self._passed(bf16=self.machine.bf16), self._passed(bf16=False)

    def _trained(self, enough: Callable[[int, float, float], bool]) -> Sample:
        clock, clip = _Clock(enough), self.module.recipe.clip_norm
        trainer = trainer_for(self.machine, epochs=10**6, callbacks=[clock], clip_norm=clip)
        trainer.fit(self.module.train(), self.batches)
        return clock.sample

    def _passed(self, *, bf16: bool) -> Sample:
        machine = replace(self.machine, bf16=bf16)
        images = self.data.test.images[:TEST_IMAGES]
        began, processor = time.perf_counter(), time.process_time()
        predictions(self.module, images, machine)
        return Sample(
            len(images), time.perf_counter() - began, max(1e-9, time.process_time() - processor)
        )


def _long_enough(steps: int, seconds: float, processor: float) -> bool:
    if steps < 2 or seconds < SHORTEST:
        return False
    return processor >= PROCESSOR_TIME or seconds >= LONGEST


class _Clock(pl.Callback):
    """Times training from the end of the first step, and stops it when `enough` returns true."""

    def __init__(self, enough: Callable[[int, float, float], bool]) -> None:
        self.enough, self.steps = enough, -1
        self.images = 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, number: int
    ) -> None:
        shutdown.check()
        self.steps += 1
        if self.steps == 0:
            _synchronize(module.device)
            self._began, self._processor = time.perf_counter(), time.process_time()
            return
        self.images += len(batch[0])
        seconds = time.perf_counter() - self._began
        processor = time.process_time() - self._processor
        if self.enough(self.steps, seconds, processor):
            _synchronize(module.device)
            seconds = time.perf_counter() - self._began
            self.sample = Sample(self.images, seconds, max(1e-9, processor))
            trainer.should_stop = True


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
