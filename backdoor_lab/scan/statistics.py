"""The statistics of the classes of a set: one per class and filter, averaged over networks.

Each filter scores the images of every class by the features of one layer, and gives a statistic of
the class that is large if a few images differ from the others in the same way. `FILTERS` was chosen
on the development triggers only (pixel, pattern, blended, sinusoid, adaptive_blend, tact).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backdoor_lab import identity
from backdoor_lab.core import streams
from backdoor_lab.core.artifacts import TensorFile
from backdoor_lab.core.progress import track
from backdoor_lab.core.rng import derive
from backdoor_lab.core.store import Store
from backdoor_lab.defenses.base import DefenderKnowledge, SampleFilter
from backdoor_lab.defenses.options import FilterOptions
from backdoor_lab.defenses.spectre import SPECTRE
from backdoor_lab.scan.images import ScanImages, judged
from backdoor_lab.scan.networks import Layers, Report, network_stage
from backdoor_lab.scan.options import ScanOptions
from backdoor_lab.training.device import ComputeDevice

STAGE = "scan_statistics"
STATISTICS_FILE = TensorFile("statistics.safetensors", ("statistics", "scores"))
"""float64 `statistics` (filters, judged classes) and `scores` (filters, n), NaN for images of
classes that are not judged."""
SUSPECTS = 25
"""One in this many images of a class is compared with the class, but at least `FEWEST_SUSPECTS`."""
FEWEST_SUSPECTS = 10
OPTIONS = FilterOptions(filter_scope="all", removal_budget="15%")


def spectre() -> SampleFilter:
    """Returns the filter whose scores and statistics are used. It assumes that a tenth of a class
    is poisoned."""
    return SPECTRE(OPTIONS, max_rank=6)


@dataclass(frozen=True)
class _Class:
    """The images of one class, uint8 (n, C, H, W), and their features by layer, float32 (n, d).
    `means` are those of all classes by layer, float32 (classes, d)."""

    label: int
    images: Tensor
    layers: dict[str, Tensor]
    means: dict[str, Tensor]
    known: DefenderKnowledge


def _spectre(layer: str) -> Statistic:
    def of_class(found: _Class) -> tuple[float, Tensor]:
        scored = spectre().score_class(found.layers[layer], found.label, found.known)
        return _log(float(scored.suspicion or 0.0)), relative(scored.scores)

    return of_class


def _largest_signal(layer: str) -> Statistic:
    def of_class(found: _Class) -> tuple[float, Tensor]:
        scores = margins(found.layers[layer], found.means[layer], found.label)
        return _log(float(shared_signal(found.images, scores).max()) ** 0.5), scores

    return of_class


def _log(value: float) -> float:
    """Returns the logarithm, whose tails are shorter."""
    return math.log(max(value, 1e-12))


Statistic = Callable[[_Class], tuple[float, Tensor]]
FILTERS: dict[str, Statistic] = {
    "spectre, middle layer": _spectre("middle"),
    "largest shared signal": _largest_signal("last"),
}
"""The statistics, by name. Each returns the statistic of a class and the scores of its images.

SPECTRE finds images that a network represents in an unusual way, such as those with a trigger that
it has learned. The margin finds images that look like another class, and the shared signal tells a
trigger from other such images: the images with the largest margins differ from the class in the
same pixels.
"""
FLOOR: Sequence[float] = (0.05, 0.15)
"""Added to the spread of each statistic over the other classes, see `studentized`."""


@dataclass(frozen=True)
class SetStatistics:
    """The statistics of a set, averaged over networks: `statistics` (filters, judged classes),
    `scores` float64 (filters, n); the accuracy of each network on its training images, and the time
    that all of them took to train."""

    statistics: NDArray[np.float64]
    scores: Tensor
    accuracies: list[float]
    seconds: float


def mean_statistics(
    found: ScanImages, options: ScanOptions, store: Store, machine: ComputeDevice,
    report: Report | None = None,
) -> SetStatistics:  # fmt: skip
    """Trains the networks of a set and computes its statistics, or reads the stored ones."""
    training = found.training_set()
    layers = [
        network_stage(training, training, number, options, store, machine, report=report)
        for number in range(options.networks)
    ]
    return statistics_of(found, layers, options, store, machine)


def statistics_of(
    found: ScanImages, networks: Sequence[Layers], options: ScanOptions, store: Store,
    machine: ComputeDevice,
) -> SetStatistics:  # fmt: skip
    """Computes the statistics of a set from the features of its images in `networks`, or reads the
    stored ones."""
    each = [statistics_stage(found, layers, options, store, machine) for layers in networks]
    return SetStatistics(
        np.mean([statistics.numpy() for statistics, _ in each], axis=0),
        torch.stack([scores for _, scores in each]).mean(dim=0),
        [layers.accuracy for layers in networks],
        sum(layers.seconds for layers in networks),
    )


def statistics_stage(
    found: ScanImages, layers: Layers, options: ScanOptions, store: Store, machine: ComputeDevice
) -> tuple[Tensor, Tensor]:
    """Computes the statistics (filters, judged classes) and the scores (filters, n) of one network,
    or reads the stored ones."""
    classes, seed = judged(found), derive(options.seed, streams.SCAN_FILTER)
    inputs: dict[str, Any] = {
        "version": identity.stage(STAGE), "layers": layers.id, "classes": classes,
        "filters": list(FILTERS), "defenses": components(),
        "seed": seed,
    }  # fmt: skip

    def make(folder: Path) -> dict[str, Any]:
        torch.set_num_threads(machine.threads)
        statistics = torch.zeros(len(FILTERS), len(classes), dtype=torch.float64)
        scores = torch.full((len(FILTERS), len(found)), torch.nan, dtype=torch.float64)
        for column, label in enumerate(track(classes, "class")):
            where = (found.labeled.labels == label).nonzero().flatten()
            of_class = _class(found, layers, label, where, seed)
            for row, filter_of in enumerate(FILTERS.values()):
                statistics[row, column], scores[row, where] = filter_of(of_class)
        STATISTICS_FILE.write(folder, {"statistics": statistics, "scores": scores})
        return {"filters": list(FILTERS)}

    read = STATISTICS_FILE.read(store.get(STAGE, inputs, make).path)
    return read["statistics"], read["scores"]


def components() -> dict[str, Any]:
    """Returns the versions of the filters that the statistics use."""
    return dict(identity.of("defenses", spectre())["defenses"])


def shared_signal(images: Tensor, scores: Tensor) -> Tensor:
    """Returns how far the mean of the images with the highest `scores` (n,) is from the mean of all
    `images` uint8 (n, C, H, W): for each value of an image, the squared difference in units of its
    variance for images drawn at random, float64 (C * H * W,). About 1 for such images."""
    number = max(FEWEST_SUSPECTS, len(scores) // SUSPECTS)
    top = scores.sort(descending=True, stable=True).indices[:number]
    values = images.flatten(1).double()
    variance = values.var(dim=0, correction=0).clamp(min=1.0)
    difference = values[top].mean(dim=0) - values.mean(dim=0)
    return difference.square() * number / variance


def margins(values: Tensor, means: Tensor, label: int) -> Tensor:
    """Returns float64 (n,): for each row of `values` (n, d), its distance to the mean of its class
    `label` minus its distance to the nearest mean of another class. `means` is (classes, d), NaN
    for classes without images."""
    distances = torch.cdist(values.double(), means.double()).nan_to_num(torch.inf)
    own = distances[:, label].clone()
    distances[:, label] = torch.inf
    return own - distances.amin(dim=1)


def relative(scores: Tensor) -> Tensor:
    """Returns positive scores (n,) divided by their median, so that those of several networks can
    be averaged."""
    return scores / scores.median().clamp(min=1e-12)


def _class(found: ScanImages, layers: Layers, label: int, where: Tensor, seed: int) -> _Class:
    labels, classes = found.labeled.labels, range(len(found.classes))
    means = {
        name: torch.stack([values[labels == y].mean(dim=0) for y in classes])
        for name, values in layers.values.items()
    }
    features = {name: values[where] for name, values in layers.values.items()}
    known = DefenderKnowledge(found.classes, None, None, seed)
    return _Class(label, found.labeled.images[where], features, means, known)
