"""Benchmarks how the run time grows with the number of images, classes, features and cells, and
with the image size. Reports the exponents of fitted power laws."""

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from backdoor_lab.attacks.pixel import Pixel
from backdoor_lab.attacks.plan import PoisonSpec
from backdoor_lab.attacks.poison import poison
from backdoor_lab.core.types import Features, LabeledImages, TrainingSet
from backdoor_lab.defenses.base import DefenderKnowledge
from backdoor_lab.defenses.options import FilterOptions
from backdoor_lab.defenses.spectral import SpectralSignatures
from backdoor_lab.numerics.singular import top_direction
from backdoor_lab.results.sweeps import read_sweep
from backdoor_lab.training.data_loader import BatchLoader
from backdoor_lab.training.device import ComputeDevice
from backdoor_lab.training.evaluate import extract
from backdoor_lab.training.recipe import Recipe
from backdoor_lab.training.train import TrainingJob, new_classifier
from tests.bench.measuring import Figure, by_turns, exponent
from tests.bench.overhead import demo_record, write_sweep

CPU = ComputeDevice(torch.device("cpu"), bf16=False, channels_last=True, threads=1)
STATED = torch.Generator().manual_seed(0)


def run() -> list[Figure]:
    """Measure on one thread. Each exponent is fitted to several sizes, of which the largest is 16
    to 64 times the smallest."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    figures = [
        _figure("poisoning, by images", (4_000, 16_000, 64_000), _poisoning),
        _figure("an epoch of augmented batches, by images", (2_000, 8_000, 32_000), _epoch),
        _figure("a batch, by pixels", (16**2, 32**2, 64**2), _batch),
        _figure("extracting features, by images", (256, 1024, 4096), _extraction),
        _figure("extracting features, by pixels", (8**2, 16**2, 32**2), _wider_images),
        _figure("filtering 20,000 examples, by classes", (10, 40, 160, 640), _classes),
        _figure("spectral scores, by features (d^3 in theory)", (128, 512, 2048), _wide, "<= 3"),
        _records(),
    ]
    torch.set_num_threads(before)
    return figures


def _figure(
    what: str, sizes: Sequence[int], prepare: Callable[[int], Callable[[], Any]],
    target: str = "<= 1.1",
) -> Figure:  # fmt: skip
    sides = {str(size): functools.partial(_seconds, prepare(size)) for size in sizes}
    found = by_turns(sides, 4)
    seconds = [min(each) for each in found.values()]
    said = ", ".join(f"{size}: {1e3 * s:.3g}" for size, s in zip(sizes, seconds, strict=True))
    return Figure(what, exponent(sizes, seconds), "", target, f"ms at {said}")


def _seconds(call: Callable[[], Any]) -> float:
    began = time.process_time()
    call()
    return time.process_time() - began


def _images(n: int, side: int, classes: int = 10) -> LabeledImages:
    pixels = torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=STATED)
    return LabeledImages(pixels, torch.arange(n) % classes, tuple(map(str, range(classes))), "")


def _training(images: LabeledImages) -> TrainingSet:
    where = torch.arange(len(images))
    return TrainingSet(images.images, images.images[:0], where, images.labels, images.classes, "")


def _recipe(batch: int) -> Recipe:
    return Recipe.of({"name": "bench", "epochs": 1, "batch_size": batch, "lr": 0.1,
                      "crop_padding": 2,
                      "flip": True})  # fmt: skip


def _poisoning(n: int) -> Callable[[], Any]:
    images, trigger = _images(n, 16), Pixel(position=(-1, -1), color=255)
    plan = PoisonSpec(target=0, source=None, ratio=0.05, ratio_of="all")
    return lambda: poison(images, trigger, plan, seed=0)


def _epoch(n: int) -> Callable[[], Any]:
    batches = BatchLoader(_training(_images(n, 16)), _recipe(128), seed=0, device=CPU.device)
    return lambda: sum(1 for _ in batches)


def _batch(pixels: int) -> Callable[[], Any]:
    training = _training(_images(256, round(pixels**0.5)))
    batches = BatchLoader(training, _recipe(128), seed=0, device=CPU.device)
    return lambda: sum(1 for _ in batches)


def _extraction(n: int, side: int = 8) -> Callable[[], Any]:
    training = _training(_images(n, side))
    model = {"name": "resnet18", "width": 4, "stem": "cifar"}
    some = torch.full((3,), 60.0)
    module = new_classifier(TrainingJob(model, _recipe(128), training, 0, some, some), CPU)
    return lambda: extract(module, training, "penultimate", CPU)


def _wider_images(pixels: int) -> Callable[[], Any]:
    return _extraction(512, round(pixels**0.5))


def _classes(classes: int) -> Callable[[], Any]:
    values = torch.randn(20_000, 64, generator=STATED)
    features = Features(values, torch.arange(len(values)) % classes)
    known = DefenderKnowledge(tuple(map(str, range(classes))), target=0, epsilon=10, seed=0)
    return lambda: SpectralSignatures(FilterOptions(filter_scope="all", removal_budget="1eps"))(
        features, known
    )


def _wide(d: int) -> Callable[[], Any]:
    values = torch.randn(2500, d, generator=STATED)
    values[:100] += 0.5
    return lambda: top_direction(values)


def _records() -> Figure:
    with tempfile.TemporaryDirectory() as folder:
        record = demo_record()
        for n in (250, 1000, 4000):
            write_sweep(Path(folder) / str(n), record, n)
        return _figure("reading a sweep, by cells", (250, 1000, 4000),
                       lambda n: lambda: read_sweep(Path(folder) / str(n)))  # fmt: skip
