"""Benchmarks of data handling: augmentation compared to torchvision's transforms, the opening of a
data set, and memory."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from backdoor_lab.attacks.pixel import Pixel
from backdoor_lab.attacks.plan import PoisonSpec
from backdoor_lab.attacks.poison import poison
from backdoor_lab.core.store import Store
from backdoor_lab.core.types import Dataset, LabeledImages, TrainingSet
from backdoor_lab.data.base import Arrays, Source, Split
from backdoor_lab.data.cache import open_dataset
from backdoor_lab.training.classifier import Classifier
from backdoor_lab.training.data_loader import BatchLoader
from backdoor_lab.training.recipe import Recipe
from tests.bench.measuring import ROOT, Figure, by_turns, memory, ratio, timed

N, BATCH = 5000, 128
SET = 50_000
MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)


def run() -> list[Figure]:
    """Measure augmentation on one thread, opening a data set of CIFAR-10's size, and the memory of
    a poisoned set."""
    return [*_augmentation(), *_opening()]


def _augmentation() -> list[Figure]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    images = torch.randint(0, 256, (N, 3, 32, 32), dtype=torch.uint8)
    labels = torch.arange(N) % 10
    # The slower side gets fewer images, so that both take a similar time.
    few = loader(images[: N // 10], labels[: N // 10], BATCH)
    sides = {"ours": lambda: _ours(images, labels), "PIL": lambda: 10 * _drain(few)}
    found = by_turns(sides, 11)
    torch.set_num_threads(before)
    return [
        Figure("crop, flip and normalisation", N / min(found["ours"]), "images/s",
               note="one thread"),
        Figure("the same by PIL per image", N / min(found["PIL"]), "images/s"),
        Figure("over PIL", ratio(found, "PIL", "ours"), "x", ">= 15"),
    ]  # fmt: skip


def _ours(images: Tensor, labels: Tensor) -> None:
    recipe = Recipe.of({"name": "bench", "epochs": 1, "batch_size": BATCH, "lr": 0.1,
                        "crop_padding": 4,
                        "flip": True})  # fmt: skip
    names = tuple("abcdefghij")
    training = TrainingSet(images, images[:0], torch.arange(len(images)), labels, names, "")
    normalised = Classifier(
        nn.Identity(), recipe, mean=torch.tensor(MEAN) * 255, std=torch.tensor(STD) * 255,
        total_steps=1, memory_format=torch.channels_last,
    )  # fmt: skip
    for batch, _ in BatchLoader(training, recipe, seed=0, device=torch.device("cpu")):
        normalised(batch)


def loader(images: Tensor, labels: Tensor, batch: int) -> Any:
    """A DataLoader without workers that applies torchvision's usual transforms to PIL images."""
    from torchvision import transforms
    from torchvision.transforms.functional import to_pil_image

    steps = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
    steps += [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    transform = transforms.Compose(steps)
    pictures = [to_pil_image(image) for image in images]

    class Pictures(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
        def __len__(self) -> int:
            return len(pictures)

        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            return transform(pictures[index]), labels[index]

    return torch.utils.data.DataLoader(Pictures(), batch, shuffle=True)


def _drain(batches: Any) -> float:
    began = time.perf_counter()
    for _ in batches:
        pass
    return time.perf_counter() - began


def _opening() -> list[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        _child("fill", Path(folder))
        opened = [_child("open", Path(folder)) for _ in range(3)]
        poisoned = _child("poison", Path(folder))
    need = poisoned["clean_mb"] + poisoned["poisoned_mb"]
    return [
        Figure(f"opening a cached set of {SET:,} images", min(each["seconds"] for each in opened),
               "s", "<= 1", "a new process, its imports aside, every hash checked"),
        Figure("clean set and poisoned images", need, "MB",
               note=f"{poisoned['n_poisoned']} poisoned"),
        Figure("peak of opening, poisoning and an epoch of batches", poisoned["peak_mb"], "MB"),
        Figure("peak over need", 100 * (poisoned["peak_mb"] / need - 1), "%", "<= 10"),
    ]  # fmt: skip


def _child(job: str, folder: Path) -> dict[str, Any]:
    _, out = timed([sys.executable, "-m", "tests.bench.data", job, str(folder)], ROOT)
    return dict(json.loads(out.splitlines()[-1]))


class _Noise(Source):
    """A data set with random pixels and the size of CIFAR-10."""

    def identity(self) -> dict[str, Any]:
        return {"n": SET}

    def read(self) -> Arrays:
        rng = np.random.default_rng(0)
        train, test = (
            Split(rng.integers(0, 256, (n, 3, 32, 32), np.uint8), np.arange(n, dtype=np.int64) % 10)
            for n in (SET, SET // 5)
        )
        return Arrays(train, test, tuple("abcdefghij"))


def _open(folder: Path) -> Dataset:
    return open_dataset(_Noise(name="noise"), Store(folder))


def _poisoned(folder: Path) -> dict[str, Any]:
    small = torch.zeros(200, 3, 32, 32, dtype=torch.uint8)
    # Load lazily imported libraries first, so that their memory does not count.
    _epoch_of_poison(LabeledImages(small, torch.arange(200) % 10, tuple("abcdefghij")))
    before = memory(restart=True)
    train = _open(folder).train
    made = _epoch_of_poison(train)
    return {
        "peak_mb": memory(peak=True) - before,
        "clean_mb": train.images.numel() / 1e6,
        "poisoned_mb": made.rows.numel() / 1e6,
        "n_poisoned": len(made.rows),
    }


def _epoch_of_poison(clean: LabeledImages) -> TrainingSet:
    plan = PoisonSpec(target=0, source=None, ratio=0.05, ratio_of="all")
    training = poison(clean, Pixel(position=(-1, -1), color=255), plan, seed=0).training
    recipe = Recipe.of({"name": "bench", "epochs": 1, "batch_size": BATCH, "lr": 0.1})
    for _ in BatchLoader(training, recipe, seed=0, device=torch.device("cpu")):
        pass
    return training


if __name__ == "__main__":
    asked, where = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    if asked == "poison":
        print(json.dumps(_poisoned(where)))
    else:
        began = time.perf_counter()
        _open(where)
        print(json.dumps({"seconds": time.perf_counter() - began}))
