"""The images of a scan: which of them are examined, and whether a reference applies to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backdoor_lab.core import streams
from backdoor_lab.core.errors import DataError, many
from backdoor_lab.core.lazy import Tensor, torch
from backdoor_lab.core.rng import numpy_generator
from backdoor_lab.core.types import LabeledImages, TrainingSet
from backdoor_lab.data.base import Split
from backdoor_lab.data.cache import content_digest
from backdoor_lab.data.validate import byte_images, whole_labels

FEWEST = 50
"""A class with fewer images is too small to judge."""
LARGEST, DRAWN = 600, 500
"""Of a class with more than `LARGEST` images, `DRAWN` are examined."""


@dataclass(frozen=True)
class ScanImages:
    """The labeled images of a scan. `names` has the path of each image, or its row number."""

    labeled: LabeledImages
    names: tuple[str, ...]
    name: str

    def __len__(self) -> int:
        return len(self.names)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.labeled.classes

    @property
    def sizes(self) -> list[int]:
        """The number of images of each class."""
        return class_sizes(self.labeled.labels, len(self.classes))

    def part(self, where: Tensor) -> ScanImages:
        """Returns the images with indices `where`, int64 (m,)."""
        images, labels = self.labeled.images[where], self.labeled.labels[where]
        labeled = _digested(images, labels, self.classes)
        return replace(self, labeled=labeled, names=tuple(self.names[i] for i in where.tolist()))

    def training_set(self) -> TrainingSet:
        """Returns all images as a training set."""
        found = self.labeled
        index = torch.arange(len(found))
        return TrainingSet(
            found.images, found.images[:0], index, found.labels, found.classes, found.digest
        )


def scan_images(
    images: NDArray[Any], labels: NDArray[Any], classes: Sequence[str], names: Sequence[str],
    name: str,
) -> ScanImages:  # fmt: skip
    """Validates labeled images, uint8 (n, C, H, W) and integers (n,). Raises DataError if they
    break a rule or if there are fewer than two classes."""
    where = f"data set {name}"
    images, labels = byte_images(images, where), whole_labels(labels, where)
    if len(images) != len(labels):
        raise DataError(f"{where}: {many(len(images), 'image')} but {many(len(labels), 'label')}")
    count = len(set(labels.tolist()))
    if count < 2:
        raise DataError(f"{where}: a scan compares classes, so it needs at least two; got {count}")
    if int(labels.max()) >= len(classes):
        raise DataError(f"{where}: label {int(labels.max())} has no class name")
    labeled = _digested(
        torch.from_numpy(np.require(images, requirements=["C", "W"])),
        torch.from_numpy(np.require(labels, requirements=["C", "W"])), tuple(classes),
    )  # fmt: skip
    return ScanImages(labeled, tuple(names), name)


def check_sizes(found: ScanImages) -> None:
    """Raises DataError if fewer than two classes are large enough to be judged."""
    if len(judged(found)) < 2:
        raise DataError(
            f"data set {found.name}: too few images: a scan needs at least two classes of at least"
            f" {FEWEST} images; the largest class has {max(found.sizes)}"
        )


def examined(found: ScanImages, seed: int) -> Tensor:
    """Returns the indices, int64 (m,), of the images to examine, in ascending order: all images of
    each class of at most `LARGEST` images, and `DRAWN` images of each larger class, drawn with
    `seed`."""
    labels = found.labeled.labels
    parts = []
    for label in range(len(found.classes)):
        rows = (labels == label).nonzero().flatten()
        if len(rows) > LARGEST:
            generator = numpy_generator(seed, streams.SCAN_SAMPLE, label)
            drawn = generator.permutation(len(rows))[:DRAWN]
            rows = rows[torch.from_numpy(np.sort(drawn))]
        parts.append(rows)
    return torch.cat(parts).sort().values


def judged(found: ScanImages) -> list[int]:
    """Returns the classes with at least `FEWEST` images."""
    return [label for label, size in enumerate(found.sizes) if size >= FEWEST]


def class_sizes(labels: Tensor, classes: int) -> list[int]:
    """Returns the number of images of each class."""
    return [int(n) for n in torch.bincount(labels, minlength=classes)]


def _digested(images: Tensor, labels: Tensor, classes: tuple[str, ...]) -> LabeledImages:
    split = Split(images.numpy(), labels.numpy())
    return LabeledImages(images, labels, classes, content_digest(split, classes))
