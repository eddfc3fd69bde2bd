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
from backdoor_lab.core.rng import derive, numpy_generator
from backdoor_lab.core.types import LabeledImages, TrainingSet
from backdoor_lab.data.arrays import resized
from backdoor_lab.data.base import Split
from backdoor_lab.data.cache import content_digest
from backdoor_lab.data.validate import byte_images, whole_labels

FEWEST = 50
"""A class with fewer images is too small to judge."""
LARGEST, DRAWN = 600, 500
"""Of a class with more than `LARGEST` images, `DRAWN` are examined."""


@dataclass(frozen=True)
class ScanImages:
    """The labeled images of a scan. `names` has the path of each image, or its row number.
    `originals` are the images before they were resized, uint8 (n, C, H, W); None if they were not
    resized or had different sizes."""

    labeled: LabeledImages
    names: tuple[str, ...]
    name: str
    originals: Tensor | None = None

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
        originals = None if self.originals is None else self.originals[where]
        names = tuple(self.names[i] for i in where.tolist())
        labeled = digested(images, labels, self.classes)
        return replace(self, labeled=labeled, names=names, originals=originals)

    def training_set(self) -> TrainingSet:
        """Returns all images as a training set."""
        found = self.labeled
        index = torch.arange(len(found))
        return TrainingSet(
            found.images, found.images[:0], index, found.labels, found.classes, found.digest
        )


def scan_images(
    images: NDArray[Any], labels: NDArray[Any], classes: Sequence[str], names: Sequence[str],
    name: str, size: int | None = None,
) -> ScanImages:  # fmt: skip
    """Validates labeled images, uint8 (n, C, H, W) and integers (n,), and resizes them to `size` x
    `size`. Raises DataError if they break a rule or if there are fewer than two classes."""
    where = f"data set {name}"
    images, labels = byte_images(images, where), whole_labels(labels, where)
    if len(images) != len(labels):
        raise DataError(f"{where}: {many(len(images), 'image')} but {many(len(labels), 'label')}")
    count = len(set(labels.tolist()))
    if count < 2:
        raise DataError(f"{where}: a scan compares classes, so it needs at least two; got {count}")
    if int(labels.max()) >= len(classes):
        raise DataError(f"{where}: label {int(labels.max())} has no class name")
    given, small = _tensor(images), _tensor(resized(images, size))
    labeled = digested(small, _tensor(labels), tuple(classes))
    same = given.shape == small.shape
    return ScanImages(labeled, tuple(names), name, None if same else given)


def changed(found: ScanImages, images: Tensor, labels: Tensor) -> ScanImages:
    """Returns a copy with other `images`, uint8 (m, C, H, W), of which those after the first n are
    additional, and their `labels`, int64 (m,)."""
    names = (*found.names, *[""] * (len(images) - len(found)))
    labeled = digested(images, labels, found.classes)
    return replace(found, labeled=labeled, names=names, originals=None)


def together(first: LabeledImages, second: LabeledImages) -> TrainingSet:
    """Returns the images of both sets, the first before the second."""
    images = torch.cat([first.images, second.images])
    labels = torch.cat([first.labels, second.labels])
    digest = f"{first.digest}+{second.digest}"
    return TrainingSet(images, images[:0], torch.arange(len(images)), labels, first.classes, digest)


def check_sizes(found: ScanImages) -> None:
    """Raises DataError if fewer than two classes are large enough to be judged."""
    if len(judged(found)) < 2:
        raise DataError(
            f"data set {found.name}: too few images: a scan needs at least two classes of at least"
            f" {FEWEST} images; the largest class has {max(found.sizes)}"
        )


def examined(found: ScanImages, seed: int) -> Tensor:
    """Returns the indices, int64 (m,), of the images to examine, in ascending order: all images of
    each class of at most `LARGEST` images, and `DRAWN` images of each larger class. Which ones,
    depends on `seed` and on the content of the set, so that the order of images does not decide."""
    labels = found.labeled.labels
    parts = []
    for label in range(len(found.classes)):
        rows = (labels == label).nonzero().flatten()
        if len(rows) > LARGEST:
            own = derive(seed, streams.SCAN_SAMPLE, int(found.labeled.digest[:15], 16))
            generator = numpy_generator(own, streams.SCAN_SAMPLE, label)
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


def _tensor(values: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.require(values, requirements=["C", "W"]))


def digested(images: Tensor, labels: Tensor, classes: tuple[str, ...]) -> LabeledImages:
    """Returns the images (n, C, H, W) and labels (n,) with the digest of their content."""
    split = Split(images.numpy(), labels.numpy())
    return LabeledImages(images, labels, classes, content_digest(split, classes))
