"""Batches with crop, flip and normalisation: ours beside torchvision's transforms per image."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from backdoor_lab.training.batches import Batches
from backdoor_lab.training.recipe import Recipe
from backdoor_lab.types import TrainingSet

N, BATCH = 5000, 128
MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)


def run() -> list[dict[str, Any]]:
    """Images per second of both on one thread, and their ratio; best of three rounds."""
    torch.set_num_threads(1)
    images = torch.randint(0, 256, (N, 3, 32, 32), dtype=torch.uint8)
    labels = torch.arange(N) % 10
    ours = max(_rate(lambda: _ours(images, labels)) for _ in range(3))
    theirs = max(_rate(lambda: _per_image(images, labels)) for _ in range(3))
    row = {"ours images/s": round(ours), "PIL per image images/s": round(theirs)}
    return [row | {"times faster": round(ours / theirs, 1), "target": 15}]


def _ours(images: Tensor, labels: Tensor) -> int:
    recipe = Recipe.of({"name": "bench", "epochs": 1, "batch": BATCH, "lr": 0.1, "crop": 4,
                        "flip": True})  # fmt: skip
    names = tuple("abcdefghij")
    training = TrainingSet(images, images[:0], torch.arange(N), labels, names, "")
    mean = torch.tensor(MEAN).view(1, 3, 1, 1) * 255
    std = torch.tensor(STD).view(1, 3, 1, 1) * 255
    seen = 0
    for batch, _ in Batches(training, recipe, seed=0, device=torch.device("cpu")):
        seen += len((batch.float() - mean) / std)
    return seen


def _per_image(images: Tensor, labels: Tensor) -> int:
    from torchvision import transforms
    from torchvision.transforms.functional import to_pil_image

    steps = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
    steps += [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    transform = transforms.Compose(steps)
    pictures = [to_pil_image(image) for image in images]

    class Pictures(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
        def __len__(self) -> int:
            return N

        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            return transform(pictures[index]), labels[index]

    loader = torch.utils.data.DataLoader(Pictures(), BATCH, shuffle=True)
    return sum(len(batch) for batch, _ in loader)


def _rate(call: Callable[[], int]) -> float:
    began = time.perf_counter()
    return call() / (time.perf_counter() - began)
