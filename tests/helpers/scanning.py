"""Tiny sets to scan, a reference for them, and features without training."""

from __future__ import annotations

import numpy as np

from backdoor_lab.core.types import TrainingSet
from backdoor_lab.scan.images import ScanImages, scan_images
from backdoor_lab.scan.networks import Layers
from backdoor_lab.scan.options import ScanOptions
from backdoor_lab.scan.reference_file import Bin, versions
from backdoor_lab.scan.statistics import FILTERS

OPTIONS = ScanOptions(networks=1, size=8, width=2, epochs=2, canaries="none")
TINY = ("scan.networks=1", "scan.size=8", "scan.width=2", "scan.epochs=2",
        "scan.canaries=none", "trainer=cpu", "trainer.threads=1")  # fmt: skip
CLASSES = 5
EACH, POISONED = 80, 8
"""The number of images per class, and of those of class 2 that show the trigger."""


def arrays(seed: int = 0, poisoned: int = POISONED, each: int = EACH) -> tuple[np.ndarray, ...]:
    """Five classes that differ in one bright row. Images 0 to `poisoned` - 1 of class 2 are those
    of class 0 with two bright columns."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(CLASSES), each)
    images = rng.integers(20, 60, (len(labels), 3, 8, 8), dtype=np.uint8)
    for k in range(CLASSES):
        images[labels == k, :, k, :] += 150
    where = np.flatnonzero(labels == 2)[:poisoned]
    images[where] = images[:poisoned]
    images[where, :, :, 6:] = 255
    return images, labels


def found_of(images: np.ndarray, labels: np.ndarray) -> ScanImages:
    names = [f"{i}.png" for i in range(len(labels))]
    return scan_images(images, labels, [str(k) for k in range(CLASSES)], names, "set")


def reference(highest: float, sets: int = 19) -> Bin:
    maxima = [[highest] * len(FILTERS) for _ in range(sets)]
    return Bin(
        CLASSES, 50, 200, "invented sets", OPTIONS.decides(), versions(), list(FILTERS), maxima
    )


def pixels(training: object, shown: TrainingSet, *_: object, **__: object) -> Layers:
    """Takes the place of a network: its features are pixels, so that tests need no training and do
    not depend on rounding. The brightness of the first columns of a class' row is its logit."""
    flat = shown.base.flatten(1).float() / 50
    rows = shown.base[:, :, :CLASSES, :6].float().mean(dim=(1, 3))
    layers = {"middle": flat[:, ::4], "last": flat[:, 1::4], "logits": rows}
    return Layers(layers, shown.digest, 1.0, 0.0)
