"""Changes of a clean set that are no backdoor, for trials: label noise, duplicates, other sizes of
classes. Each returns the changed set and the classes that may rightly raise an alarm."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from backdoor_lab.core import streams
from backdoor_lab.core.rng import numpy_generator
from backdoor_lab.scan.images import ScanImages, changed

Changed = tuple[ScanImages, list[int]]
SMALLEST = 0.1
"""The size of the smallest class of a long-tailed set, relative to the largest."""
BRIGHTNESS = 8
"""The largest change of brightness of a near-duplicate, in gray levels."""


def symmetric_noise(found: ScanImages, rate: float, seed: int) -> Changed:
    """Gives `rate` of the images of every class a label drawn from the other classes."""
    generator, labels = numpy_generator(seed, streams.SCAN_TRIAL), found.labeled.labels.clone()
    classes = len(found.classes)
    for label in range(classes):
        rows = (found.labeled.labels == label).nonzero().flatten().numpy()
        drawn = generator.permutation(rows)[: round(rate * len(rows))]
        steps = generator.integers(1, classes, len(drawn))
        labels[torch.from_numpy(drawn)] = torch.from_numpy((label + steps) % classes)
    return changed(found, found.labeled.images, labels), []


def asymmetric_noise(found: ScanImages, rate: float, seed: int) -> Changed:
    """Gives `rate` of the images of one class the label of another class, which may raise an
    alarm: its wrong labels are a subgroup."""
    generator, labels = numpy_generator(seed, streams.SCAN_TRIAL), found.labeled.labels.clone()
    source, target = generator.permutation(len(found.classes))[:2].tolist()
    rows = (labels == source).nonzero().flatten().numpy()
    labels[torch.from_numpy(generator.permutation(rows)[: round(rate * len(rows))])] = target
    return changed(found, found.labeled.images, labels), [target]


def near_duplicates(found: ScanImages, rate: float, seed: int) -> Changed:
    """Replaces `rate` of the images of one class, which may raise an alarm, by copies of one of its
    images in different brightness."""
    generator, images = numpy_generator(seed, streams.SCAN_TRIAL), found.labeled.images.clone()
    label = int(generator.integers(len(found.classes)))
    rows = (found.labeled.labels == label).nonzero().flatten().numpy()
    one, *others = generator.permutation(rows)[: 1 + round(rate * len(rows))].tolist()
    for row in others:
        shift = int(generator.integers(-BRIGHTNESS, BRIGHTNESS + 1))
        images[row] = (found.labeled.images[one].int() + shift).clamp(0, 255).to(torch.uint8)
    return changed(found, images, found.labeled.labels), [label]


def long_tail(found: ScanImages, rate: float, seed: int) -> Changed:
    """Keeps all images of the first class and exponentially fewer of each later class. `rate` has
    no effect."""
    sizes = np.array(found.sizes) * SMALLEST ** np.linspace(0, 1, len(found.classes))
    rows = [
        (found.labeled.labels == label).nonzero().flatten()[: round(size)]
        for label, size in enumerate(sizes)
    ]
    return found.part(torch.cat(rows).sort().values), []


def two_classes(found: ScanImages, rate: float, seed: int) -> Changed:
    """Keeps the images of the first two classes only. `rate` has no effect."""
    part = found.part((found.labeled.labels < 2).nonzero().flatten())
    return part, []


CHANGES: dict[str, Callable[[ScanImages, float, int], Changed]] = {
    each.__name__: each
    for each in (symmetric_noise, asymmetric_noise, near_duplicates, long_tail, two_classes)
}
