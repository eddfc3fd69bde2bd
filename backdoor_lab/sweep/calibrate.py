"""How fast this machine trains and measures, tried as a sweep would use it: as many processes at a
time, as many threads, the same network, images, batches and number format."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import pytorch_lightning as pl
import torch

from backdoor_lab.attacks.poison import clean
from backdoor_lab.core import stopping
from backdoor_lab.core.errors import StoreFull
from backdoor_lab.core.resources import busy_seconds, cores
from backdoor_lab.core.store import Store
from backdoor_lab.core.types import Dataset
from backdoor_lab.data.cache import is_stored, open_dataset
from backdoor_lab.pipeline.cell import Cell
from backdoor_lab.sweep.launching.workers import Died, Worker
from backdoor_lab.sweep.preflight import Preflight
from backdoor_lab.training.batches import Batches
from backdoor_lab.training.fit import Job, new_classifier, trainer_for
from backdoor_lab.training.machine import Machine
from backdoor_lab.training.measure import channel_stats, predictions

WARM_UP, WARM_UP_SECONDS = 10, 10.0
"""Training steps before any is measured, unless so few take so long: the first ones compile and
allocate."""
SHORTEST, LONGEST = 3.0, 15.0
"""Seconds by the clock that training is measured for, within which it should get
`PROCESSOR_TIME` seconds of a processor."""
PROCESSOR_TIME = 2.0
TEST_IMAGES = 1024
MOST_PROCESSES = 32
BUSY = 0.15
"""The share of the cores from which on other processes' use of them is told."""


@dataclass(frozen=True)
class Rate:
    """Seconds per image, in each of the processes. `now`: by the clock, beside whatever else runs
    on this machine; `idle`: where nothing else does."""

    now: float
    idle: float


@dataclass(frozen=True)
class Speed:
    """What one image takes in training, in a measurement, and when features are taken."""

    train: Rate
    measure: Rate
    extract: Rate


@dataclass(frozen=True)
class Calibration:
    """The `speeds` of each kind of cell; `start`, the processor seconds that a process takes until
    it can begin; how many `processes` of how many `threads` were tried at a time; and how many
    cores `others` used meanwhile, None where that cannot be told. Threads of one process that
    wait for a core make each other wait: where others disturb them, `single` is the same on one
    thread, by which alone the time on an idle machine can be told."""

    speeds: dict[str, Speed]
    start: float
    processes: int
    threads: int
    others: float | None
    single: Calibration | None = None

    @property
    def disturbed(self) -> bool:
        """Whether other processes used so much of the machine that times now and times on an
        idle machine differ."""
        return self.others is not None and self.others >= BUSY * cores()


@dataclass(frozen=True)
class Sample:
    """So many images in so many seconds by the clock and of processor time."""

    images: int
    seconds: float
    processor: float

    def rate(self, slowest: float) -> Rate:
        """`slowest` processor seconds pass in one by the clock, when nothing else runs."""
        now = self.seconds / self.images
        return Rate(now, min(now, self.processor / self.images / slowest))


Samples = tuple[Sample, Sample, Sample]


def calibrate(kinds: dict[str, Cell], machine: Machine, processes: int) -> Calibration:
    """Tries each kind of cell in `processes` workers at a time; in this process itself for 0, as a
    single cell is run."""
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
    """The cell with a store that holds its data set, as the sweep's will: its own, or one in the
    folder `aside`, so that a trial leaves nothing and no worker reads the images again."""
    source, settings = cell.parts.data, cell.config["store"]
    if not is_stored(source, Store(settings["root"], read_only=True)):
        # Without room there, each worker reads them.
        with suppress(StoreFull):
            open_dataset(source, Store(aside))
            settings = {**settings, "root": aside}
    return replace(cell, config={**cell.config, "store": settings})


def _tried(
    kinds: dict[str, Cell], machine: Machine, workers: Sequence[Any], start: float | None
) -> Calibration:
    found = _calibration(kinds, machine, workers, start)
    if found.disturbed and found.threads > 1 and machine.device.type == "cpu":
        single = _calibration(kinds, replace(machine, threads=1), workers, start)
        return replace(found, single=single)
    return found


def _calibration(
    kinds: dict[str, Cell], machine: Machine, workers: Sequence[Any], start: float | None
) -> Calibration:
    speeds, starts, others = {}, [], []
    # More threads than cores wait for each other also where nothing else runs.
    slowest = min(machine.threads, cores() / len(workers))
    for kind, cell in kinds.items():
        ready = _all(workers, [("prepare", cell.config, _placed(machine, n), os.getpid())
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
        on_cpu = machine.device.type == "cpu"
        speeds[kind] = _speed([samples for samples, _ in found], slowest if on_cpu else None)
    return Calibration(
        speeds, max(starts, default=0.0) if start is None else start, len(workers),
        machine.threads, sum(others) / len(others) if others else None,
    )  # fmt: skip


def _all(workers: Sequence[Any], jobs: Sequence[Any]) -> list[Any]:
    """The results of one job for each worker, all at the same time."""
    for worker, job in zip(workers, jobs, strict=True):
        worker.send(job)
    try:
        return [worker.result() for worker in workers]
    except Died as death:
        # A cell would die alike, and then say more.
        raise RuntimeError(f"a calibration ended with exit code {death.code}") from death


def _placed(machine: Machine, number: int) -> Machine:
    """The machine with a GPU for the worker of this number; a CPU is shared."""
    if machine.device.type != "cuda":
        return machine
    return replace(machine, device=torch.device("cuda", number % torch.cuda.device_count()))


def _speed(found: Sequence[Samples], slowest: float | None) -> Speed:
    """The mean of all processes; without `slowest`, on a GPU, processor time says nothing."""
    means = []
    for samples in zip(*found, strict=True):
        rates = [
            Rate(s.seconds / s.images, s.seconds / s.images) if slowest is None else s.rate(slowest)
            for s in samples
        ]
        n = len(rates)
        means.append(Rate(sum(r.now for r in rates) / n, sum(r.idle for r in rates) / n))
    return Speed(*means)


class _Here:
    """This process in the place of a worker."""

    def send(self, job: Any) -> None:
        """As `Worker.send`."""
        self._job = job

    def result(self) -> Any:
        """As `Worker.result`."""
        return _serve(self._job)


_benches: list[Bench] = []


def _serve(job: tuple[Any, ...]) -> Any:
    """``prepare``: the processor seconds that this process took to be ready to train such a cell.
    ``measure``: its samples, and the processor seconds that this took."""
    if job[0] == "prepare":
        _, config, machine, driver = job
        cell = Preflight().cell(config)
        data = open_dataset(cell.parts.data, Store(cell.store_root, read_only=True))
        spent = time.process_time()
        _benches[:] = [Bench(cell, data, machine)]
        _benches[0].warm_up()
        return 0.0 if os.getpid() == driver else spent
    began = time.process_time()
    samples = _benches[0].measure()
    return samples, time.process_time() - began


class Bench:
    """One cell's network, ready to be trained and used for as long as a measurement takes."""

    def __init__(self, cell: Cell, data: Dataset, machine: Machine) -> None:
        self.data, self.machine = data, machine
        training = clean(data.train)
        mean, std = channel_stats(training.base)
        job = Job(cell.model, cell.recipe, training, 0, mean, std)
        torch.set_num_threads(machine.threads)
        self.batches = Batches(training, cell.recipe, seed=0, device=machine.device)
        self.module = new_classifier(job, machine, total_steps=10**6)

    def warm_up(self) -> None:
        """Steps and passes that are not measured."""
        self._trained(lambda steps, seconds, _: steps >= WARM_UP or seconds > WARM_UP_SECONDS)
        self._passed(bf16=self.machine.bf16)
        self._passed(bf16=False)

    def measure(self) -> Samples:
        """Samples of training, of a measurement, and of what is computed for features."""
        trained = self._trained(_long_enough)
        return trained, self._passed(bf16=self.machine.bf16), self._passed(bf16=False)

    def _trained(self, enough: Callable[[int, float, float], bool]) -> Sample:
        clock = _Clock(enough)
        trainer = trainer_for(self.machine, epochs=10**6, callbacks=[clock])
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
    """Measures training from its second step on, and ends it when it has seen enough."""

    def __init__(self, enough: Callable[[int, float, float], bool]) -> None:
        self.enough, self.steps = enough, -1
        self.images = 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, number: int
    ) -> None:
        stopping.check()
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
