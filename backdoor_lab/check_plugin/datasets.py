"""Checks of a data set, which are applied to all of its images. Each takes a function that makes
the data set."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from backdoor_lab.check_plugin.finding import Checks, require
from backdoor_lab.core.atomic_io import canonical
from backdoor_lab.core.lazy import torch
from backdoor_lab.core.store import Store
from backdoor_lab.core.types import Dataset
from backdoor_lab.data.base import Source
from backdoor_lab.data.cache import open_dataset

Make = Callable[[], Source]


def _opened(make: Make) -> Dataset:
    """Read the data set again, through a new empty store."""
    with tempfile.TemporaryDirectory() as folder:
        return open_dataset(make(), Store(Path(folder)))


def passes_validation(make: Make) -> None:
    """Checks that every rule for images, labels and classes is kept."""
    _opened(make)


def is_identified(make: Make) -> None:
    """Checks that the identity is JSON data without paths, and the same each time."""
    first, second = make(), make()
    said = canonical(first.identity())
    require(said == canonical(second.identity()), "its identity differs from call to call")
    root = getattr(first, "root", None)
    require(not root or str(root) not in said, "its identity contains a path")
    require(first.fingerprint() == second.fingerprint(), "its fingerprint differs")


def knows_its_classes(make: Make) -> None:
    """Checks that `known_classes` returns None or the names that reading yields."""
    known, read = make().known_classes(), _opened(make).classes
    require(known is None or known == read, f"known_classes is {known}, but reading yields {read}")


def reads_the_same_again(make: Make) -> None:
    """Checks that two readings give the same images and labels."""
    for one, other in zip(_splits(make), _splits(make), strict=True):
        require(torch.equal(one, other), "two readings differ")


def _splits(make: Make) -> list[torch.Tensor]:
    found = _opened(make)
    return [found.train.images, found.train.labels, found.test.images, found.test.labels]


CHECKS: Checks = {
    "passes the validation": passes_validation,
    "has a stable identity": is_identified,
    "knows its classes": knows_its_classes,
    "reads the same images again": reads_the_same_again,
}
