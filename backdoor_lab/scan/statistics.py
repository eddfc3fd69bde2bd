"""The statistics of the classes of a set: one per class and filter, averaged over networks.

Each filter scores the images of every class, and gives a statistic of the class that is large if
a few images share a signal that other images lack. `FILTERS` was chosen on the development triggers
only (pixel, pattern, blended, sinusoid, adaptive_blend, tact).
"""

from __future__ import annotations

from collections.abc import Sequence
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
from backdoor_lab.scan.signals import (
    FEWEST,
    Ints,
    Signal,
    codes_of,
    frequencies_of,
    peers_of,
    repeated_value,
    shared_frequency,
)
from backdoor_lab.training.device import ComputeDevice

STAGE = "scan_statistics"
STATISTICS_FILE = TensorFile("statistics.safetensors", ("statistics", "scores"))
"""float64 `statistics` (filters, judged classes) and `scores` (filters, n), NaN for images of
classes that are not judged."""
OPTIONS = FilterOptions(filter_scope="all", removal_budget="15%")
OUTLIERS = 20
"""One in this many images of a class, those with the highest scores of SPECTRE, is a group."""
FILTERS = (
    "repeated value, taken for other classes", "shared frequency, taken for other classes",
    "repeated value, outliers of SPECTRE", "shared frequency, outliers of SPECTRE",
)  # fmt: skip
"""The statistics of a class: the strength of a signal (see `signals`) in a group of its images.

The groups are the images that a network takes for other classes, and those that it represents in
the most unusual way. A trigger that the network has not learned leaves its images in the first
group, one that it has learned puts them in the second.
"""
FLOOR: Sequence[float] = (3.0, 1.0, 3.0, 2.0)
"""Added to the spread of each statistic over the other classes, see `studentized`."""


def spectre() -> SampleFilter:
    """Returns the filter whose scores are used. It assumes that a tenth of a class is poisoned."""
    return SPECTRE(OPTIONS, max_rank=6)


@dataclass(frozen=True)
class ExaminedSet:
    """The images of a set, uint8 (n, C, H, W), as colors and frequencies (see `signals`), their
    labels, the predictions of a network, int64 (n,), and its features of the middle layer."""

    codes: Ints
    frequencies: NDArray[np.float32]
    labels: Ints
    predicted: Ints
    middle: Tensor
    classes: tuple[str, ...]

    def signals(self, label: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Returns the statistics of a class (filters,) and the scores of its images (filters, n).
        Images that show a signal equally are ordered by how unusual their features are."""
        of_class = np.flatnonzero(self.labels == label)
        known = DefenderKnowledge(self.classes, None, None, seed)
        unusual = spectre().score_class(self.middle[of_class], label, known).scores.numpy()
        outliers = np.argsort(-unusual, kind="stable")[: len(of_class) // OUTLIERS]
        order = np.argsort(np.argsort(unusual, kind="stable")) / max(1, len(unusual))
        found: list[Signal] = []
        for group in (of_class[self.predicted[of_class] != label], of_class[np.sort(outliers)]):
            peers = None if len(group) < FEWEST else peers_of(group, self.labels, self.predicted)
            if peers is None:
                found += [(0.0, np.zeros(len(of_class)))] * 2
                continue
            found.append(repeated_value(self.codes, of_class, group, peers))
            found.append(shared_frequency(self.frequencies, of_class, group, peers))
        strengths, shown = zip(*found, strict=True)
        return np.array(strengths), np.array(shown) + 1e-3 * order


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
        whole, labels = set_of(found, layers), found.labeled.labels.numpy()
        for column, label in enumerate(track(classes, "class")):
            strengths, shown = whole.signals(label, seed)
            statistics[:, column] = torch.from_numpy(strengths)
            scores[:, labels == label] = torch.from_numpy(shown)
        STATISTICS_FILE.write(folder, {"statistics": statistics, "scores": scores})
        return {"filters": list(FILTERS)}

    read = STATISTICS_FILE.read(store.get(STAGE, inputs, make).path)
    return read["statistics"], read["scores"]


def set_of(found: ScanImages, layers: Layers) -> ExaminedSet:
    """Returns what the statistics of a set are computed from."""
    images = found.labeled.images.numpy()
    return ExaminedSet(
        codes_of(images), frequencies_of(images), found.labeled.labels.numpy(),
        layers.values["logits"].argmax(dim=1).numpy(), layers.values["middle"], found.classes,
    )  # fmt: skip


def components() -> dict[str, Any]:
    """Returns the versions of the filters that the statistics use."""
    return dict(identity.of("defenses", spectre())["defenses"])
