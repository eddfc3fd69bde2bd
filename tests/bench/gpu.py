"""The benchmarks that need a GPU: `make bench-gpu`.

    python -m tests.bench.gpu [--tiny] [--again] [--data OVERRIDE ...] [PART ...]

Each part writes multirun_reports/bench/gpu_PART.json as soon as it ends. A part that has this file
is skipped the next time, unless `--again` is given. The parts `cell` and `table` need CIFAR-10 or
another data set: ``--data dataset=image_folder dataset.root=PATH``. With `--tiny`, the same code
runs on a CPU in seconds, to check that it works.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from backdoor_lab.core.types import TrainingSet
from backdoor_lab.numerics.singular import top_direction
from backdoor_lab.training.classifier import Classifier
from backdoor_lab.training.data_loader import BatchLoader
from backdoor_lab.training.device import ComputeDevice, machine_of
from backdoor_lab.training.evaluate import extract
from backdoor_lab.training.recipe import Recipe, optimizer_of
from backdoor_lab.training.train import TrainingJob, fit, new_classifier
from tests.bench import measuring
from tests.bench.measuring import TINY, Figure, command, hardware, show, timed, write

Step = Callable[[Tensor, Tensor], None]
Way = Callable[[Classifier, torch.optim.Optimizer, ComputeDevice], Step]


@dataclass(frozen=True)
class Size:
    """The size of the benchmarks: tiny, or full. The targets are set for the full size."""

    tiny: bool
    data: tuple[str, ...] = ()

    def of(self, full: int, tiny: int) -> int:
        return tiny if self.tiny else full

    def machine(self) -> ComputeDevice:
        """The device: a GPU in bfloat16 or, if tiny, one CPU thread."""
        trainer = {"accelerator": "cpu" if self.tiny else "gpu", "precision": "bf16",
                   "channels_last": True, "threads": 1 if self.tiny else None,
                   "progress": "none", "checkpoint": True, "cells_per_gpu": 1}  # fmt: skip
        return machine_of(trainer)

    def job(self, n: int, batch: int, epochs: int = 1) -> TrainingJob:
        """A training job on `n` random images with the settings of the recipe `fast`."""
        side, width = self.of(32, 8), self.of(64, 4)
        images = torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8)
        names = tuple("abcdefghij")
        training = TrainingSet(images, images[:0], torch.arange(n), torch.arange(n) % 10, names, "")
        said: dict[str, Any] = {
            "name": "fast", "epochs": epochs, "batch_size": batch, "lr": 0.1, "nesterov": True,
            "weight_decay": 5e-4, "label_smoothing": 0.1, "crop_padding": self.of(4, 1),
            "flip": True,
        }  # fmt: skip
        model = {"name": "resnet18", "width": width, "stem": "cifar"}
        some = torch.full((3,), 64.0)
        return TrainingJob(model, Recipe.of(said), training, 0, 2 * some, some)


def throughput(size: Size) -> list[Figure]:
    """Training images per second without Lightning: eager, compiled, and as one CUDA graph."""
    figures = []
    for batch, target in ((size.of(512, 8), 75_000), (size.of(128, 4), 60_000)):
        found = {name: _rate(size, batch, way) for name, way in _ways(size).items()}
        best = max(found, key=lambda name: found[name])
        figures += [Figure(f"batch {batch}, {name}", rate, "images/s")
                    for name, rate in found.items()]  # fmt: skip
        asked = "" if size.tiny else f">= {target}"
        figures.append(Figure(f"batch {batch}, the fastest", found[best], "images/s", asked, best))
    return figures


def lightning(size: Size) -> list[Figure]:
    """Training images per second with Lightning, including everything that the training of a cell
    does between its steps."""
    figures = []
    for batch in (size.of(512, 8), size.of(128, 4)):
        steps = size.of(200, 3)
        job, clock = size.job(batch * steps, batch, epochs=2), _SecondEpoch()
        fit(job, size.machine(), callbacks=[clock])
        figures.append(Figure(f"batch {batch}, Lightning", batch * steps / clock.seconds,
                              "images/s"))  # fmt: skip
    return figures


def sync(size: Size) -> list[Figure]:
    """How often a training step makes the host wait for the GPU (detected by torch or `Watch`)."""
    batch = size.of(512, 8)
    job, watch = size.job(batch * 6, batch), Watch()
    with watch.watching(size.machine().device):
        fit(job, size.machine(), callbacks=[watch])
    return [Figure("waits of the host inside steps", len(watch.waits), "", "<= 0",
                   ", ".join(sorted(set(watch.waits))))]  # fmt: skip


def spectral(size: Size) -> list[Figure]:
    """Seconds for the features of 50,000 images, and for spectral signatures on ten classes."""
    machine, n = size.machine(), size.of(50_000, 200)
    job = size.job(n, size.of(512, 8))
    module = new_classifier(job, machine)
    seconds = min(_seconds(lambda: extract(module, job.training, "penultimate", machine),
                           machine.device) for _ in range(size.of(3, 1)))  # fmt: skip
    values = torch.randn(10, size.of(5000, 80), size.of(512, 70))
    values[:, : values.shape[1] // 20] += 0.5
    there = values.to(machine.device)
    on_cpu, on_device = (
        min(_seconds(lambda: [top_direction(each) for each in given], machine.device)  # noqa: B023
            for _ in range(3)) for given in (values, there)
    )  # fmt: skip
    best = 1e3 * min(on_cpu, on_device)
    return [
        Figure(f"features of {n:,} images, float32", seconds, "s"),
        Figure("spectral step, features on the CPU", 1e3 * on_cpu, "ms"),
        Figure("spectral step, features on the GPU", 1e3 * on_device, "ms"),
        Figure("spectral step, the faster", best, "ms", "" if size.tiny else "<= 50"),
    ]


def cell(size: Size) -> list[Figure]:
    """Seconds of one cell of the recipe `fast`, without imports and CUDA initialization."""
    with tempfile.TemporaryDirectory() as folder:
        if not size.tiny:
            _run_cell(Path(folder) / "warm", [*TINY, "trainer=gpu"])
        record = _run_cell(Path(folder) / "cell", _asked(size))
    seconds, nat = record["run"]["wall_seconds"], 100 * record["nat1"]
    stages = ", ".join(f"{name} {s:.2f}" for name, s in record["run"]["seconds"].items())
    return [
        Figure("one cell", seconds, "s", "" if size.tiny else "<= 40", stages),
        Figure("Nat1", nat, "%", "" if size.tiny else ">= 94"),
        Figure("ASR1", 100 * record["asr1"], "%"),
        Figure("ASR2", 100 * record["asr2"], "%"),
    ]


def table(size: Size) -> list[Figure]:
    """Seconds of the report's twelve cells, from the command to the tables."""
    asked = [*_asked(size), "trigger=pixel,pattern", "target=bird,dog,horse", "ratio=0.05,0.1"]
    with tempfile.TemporaryDirectory() as folder:
        arguments = [*command("backdoor_lab"), "-m", *dict.fromkeys(asked)]
        seconds, _ = timed(arguments, Path(folder), CUDA_VISIBLE_DEVICES="" if size.tiny else "0")
    return [Figure("12 cells to their tables", seconds, "s", "" if size.tiny else "<= 480")]


PARTS: dict[str, Callable[[Size], list[Figure]]] = {
    "throughput": throughput, "lightning": lightning, "sync": sync, "spectral": spectral,
    "cell": cell, "table": table,
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks. Returns 1 if a target was missed, 2 without a GPU or for an unknown part,
    otherwise 0."""
    given = _parser().parse_args(arguments)
    if not given.tiny and not torch.cuda.is_available():
        print("error: torch finds no GPU; --tiny runs the same code on a CPU", file=sys.stderr)
        return 2
    # All batches have the same shape. Lightning's trainer uses the same setting.
    torch.backends.cudnn.benchmark = not given.tiny
    size = Size(given.tiny, tuple(given.data))
    prefix = "gpu_tiny" if given.tiny else "gpu"
    missed = [_part(name, size, prefix, again=given.again) for name in given.parts or PARTS]
    return int(any(missed))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.gpu", description=__doc__)
    parser.add_argument("parts", metavar="PART", nargs="*", choices=[[], *PARTS])
    parser.add_argument("--tiny", action="store_true", help="on a CPU, in seconds")
    parser.add_argument("--again", action="store_true", help="also parts that have a record")
    parser.add_argument("--data", nargs="+", default=[], help="overrides that choose a data set")
    return parser


def _part(name: str, size: Size, prefix: str, *, again: bool) -> bool:
    """Run one part unless it has a record. Returns whether it missed a target."""
    path = measuring.REPORTS / f"{prefix}_{name}.json"
    if path.is_file() and not again:
        figures = [Figure(**{key: each[key] for key in Figure.__annotations__})
                   for each in json.loads(path.read_bytes())["figures"]]  # fmt: skip
        show(f"{name} (kept from before)", figures)
    else:
        before, began = hardware(), time.perf_counter()
        figures = PARTS[name](size)
        write(f"{prefix}_{name}", figures, before, time.perf_counter() - began)
        show(name, figures)
    return any(each.reached is False for each in figures)


def _ways(size: Size) -> dict[str, Way]:
    compiled = functools.partial(_compiled, tiny=size.tiny)
    ways: dict[str, Way] = {"eager": _eager, "compiled": compiled}
    # CUDA graphs do not exist on a CPU.
    return ways if size.tiny else {**ways, "CUDA graph": _graphed}


def _rate(size: Size, batch: int, way: Way) -> float:
    """Images per second of complete steps: gathering, augmenting, forward, backward, SGD."""
    machine, steps = size.machine(), size.of(100, 2)
    job = size.job(batch * steps, batch)
    batches = BatchLoader(job.training, job.recipe, seed=0, device=machine.device)
    module = new_classifier(job, machine, steps).to(machine.device).train()
    optimizer, _ = optimizer_of(job.recipe, module.net, steps)
    step = way(module, optimizer, machine)
    for images, labels in batches:
        step(images, labels)
    rounds = [_seconds(lambda: [step(*each) for each in batches], machine.device)
              for _ in range(size.of(3, 1))]  # fmt: skip
    return batch * steps / min(rounds)


def _eager(module: Classifier, optimizer: torch.optim.Optimizer, machine: ComputeDevice) -> Step:
    def step(images: Tensor, labels: Tensor) -> None:
        with machine.autocast():
            loss = module.loss(module(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def _compiled(
    module: Classifier, optimizer: torch.optim.Optimizer, machine: ComputeDevice, *, tiny: bool
) -> Step:
    # Compile in place: a wrapper would change the names of the weights.
    module.net.compile(backend="eager" if tiny else "inductor")
    return _eager(module, optimizer, machine)


def _graphed(module: Classifier, optimizer: torch.optim.Optimizer, machine: ComputeDevice) -> Step:
    """Record the whole step once, and replay it as one graph. The learning rate is constant."""
    eager, graph = _eager(module, optimizer, machine), torch.cuda.CUDAGraph()
    held: list[Tensor] = []

    def step(images: Tensor, labels: Tensor) -> None:
        if not held:
            held.extend([images.clone(), labels.clone()])
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(3):
                    eager(*held)
            torch.cuda.current_stream().wait_stream(side)
            optimizer.zero_grad(set_to_none=True)
            with torch.cuda.graph(graph):
                eager(*held)
        held[0].copy_(images)
        held[1].copy_(labels)
        graph.replay()

    return step


def _seconds(call: Callable[[], Any], device: torch.device) -> float:
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    began = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - began


class _SecondEpoch(pl.Callback):
    """Times the second epoch. During the first one, cuDNN searches for the fastest convolutions."""

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.began = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        # Read the epoch's loss, to wait for the GPU.
        float(module.epoch_loss())
        self.seconds = time.perf_counter() - self.began


class Watch(pl.Callback):
    """Records the operations after the first step of an epoch that make the host wait for the GPU.

    On a GPU, torch raises an error at each of them. On a CPU nothing waits, so operations that read
    a value back are recorded: `.item()`, and sizes that depend on values.
    """

    def __init__(self) -> None:
        self.waits: list[str] = []
        self.on = False

    @contextmanager
    def watching(self, device: torch.device) -> Iterator[None]:
        """Watch the code inside this context. Does not count the check of the loss after each step,
        which happens only on a CPU."""
        self.cuda = device.type == "cuda"
        if self.cuda:
            try:
                yield
            except RuntimeError as error:
                if "synchroniz" not in str(error):
                    raise
                self.waits.append(str(error).splitlines()[0])
            finally:
                torch.cuda.set_sync_debug_mode("default")
            return
        with mock.patch.object(Classifier, "_check", return_value=None), _Reads(self):
            yield

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, step: int
    ) -> None:
        self.on = step + 1 < int(trainer.num_training_batches)
        if self.cuda:
            torch.cuda.set_sync_debug_mode("error" if self.on else "default")

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, step: int
    ) -> None:
        # After the last step of an epoch, waiting is allowed.
        if step + 1 == int(trainer.num_training_batches):
            self.on = False


class _Reads(TorchDispatchMode):
    READING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal")

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = function.__name__.split(".")[0]
        if self.watch.on and (name in self.READING or _by_mask(name, args)):
            self.watch.waits.append(name)
        return function(*args, **(kwargs or {}))


def _by_mask(name: str, args: Sequence[Any]) -> bool:
    """Whether an index is a boolean mask, for which torch must read the number of true values."""
    if name not in ("index", "index_put_", "_index_put_impl_"):
        return False
    return any(each is not None and each.dtype == torch.bool for each in args[1])


def _asked(size: Size) -> list[str]:
    if size.tiny:
        return [*TINY]
    return ["recipe=fast", "trainer=gpu", "trigger=pattern", "ratio=0.1", "logger=none", *size.data]


def _run_cell(folder: Path, overrides: Sequence[str]) -> dict[str, Any]:
    from hydra import compose, initialize_config_dir

    import backdoor_lab.run  # noqa: F401  (registers the resolvers that conf/ uses)
    from backdoor_lab.run import conf_dir
    from backdoor_lab.sweep.compose import plain
    from backdoor_lab.sweep.job import run_job

    with initialize_config_dir(conf_dir(), version_base="1.3"):
        config = plain(compose("config", [*overrides, f"store.root={folder / 'store'}"]))
    status = run_job(config, folder, 1)
    assert status == "done", status
    return dict(json.loads((folder / "record.json").read_bytes()))


if __name__ == "__main__":
    sys.exit(main())
