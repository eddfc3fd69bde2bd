"""What every kind of data set has in common: a cheap identity, and reading into plain arrays."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from glob import has_magic
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backdoor_lab import identity
from backdoor_lab.core import checks
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.files import digest
from backdoor_lab.data.splits import HeldOut

EMBEDDED = "To run on data that needs no download: python -m backdoor_lab experiment=demo"


@dataclass(frozen=True)
class Split:
    """`images` uint8 (N, C, H, W), `labels` int64 (N,)."""

    images: NDArray[Any]
    labels: NDArray[Any]


@dataclass(frozen=True)
class Arrays:
    """Both splits of a data set; label k is ``classes[k]``."""

    train: Split
    test: Split
    classes: tuple[str, ...]


class Source(ABC):
    """Where a data set comes from. The constructor's parameters are the keys of its YAML file.

    Constructors check their parameters (ConfigError) and touch no file. `limit_train` and
    `limit_test` keep the first so many images of every class.
    """

    def __init__(
        self, *, name: str, limit_train: int | None = None, limit_test: int | None = None
    ) -> None:
        self.name: str = checks.safe_name("dataset.name", name)
        self.limit_train = positive("dataset.limit_train", limit_train)
        self.limit_test = positive("dataset.limit_test", limit_test)
        self.notes: dict[str, Any] = {}
        """What else the record says of the files; known after `identity` or `read`."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Cheap JSON that decides the content, free of paths. DataError if data is missing."""

    def known_classes(self) -> tuple[str, ...] | None:
        """The names of the classes, where they are known without reading the images; else None.
        Raises DataError."""
        return None

    def is_absent(self) -> bool:
        """Whether `read` would have to download everything."""
        return False

    @abstractmethod
    def read(self) -> Arrays:
        """The whole data set; what it holds is checked by whoever calls. Raises DataError."""

    def fingerprint(self) -> str:
        """A hash that names the content without reading all of it. Raises DataError."""
        limits = [self.limit_train, self.limit_test]
        (mark,) = identity.of("datasets", self)["datasets"].values()
        kind = f"{type(self).__name__}/{mark}"
        return digest({"kind": kind, "limits": limits, "identity": self.identity()})

    def limited(self) -> Arrays:
        """What `read` gives, cut to the first `limit_train` and `limit_test` of every class."""
        arrays = self.read()
        return replace(
            arrays,
            train=first_per_class(arrays.train, self.limit_train),
            test=first_per_class(arrays.test, self.limit_test),
        )


def divided(split: Split, held_out: HeldOut, classes: tuple[str, ...]) -> tuple[Split, Split]:
    """Training and test images out of one split, by `held_out`, in their old order."""
    chosen = np.zeros(len(split.labels), bool)
    for label in np.unique(split.labels):
        rows = np.flatnonzero(split.labels == label)
        chosen[rows] = held_out.held_out(len(rows), classes[label])
    return (
        Split(split.images[~chosen], split.labels[~chosen]),
        Split(split.images[chosen], split.labels[chosen]),
    )


def first_per_class(split: Split, limit: int | None) -> Split:
    """The first `limit` images of every class, in their old order; None keeps all."""
    if limit is None:
        return split
    rows = [np.flatnonzero(split.labels == label)[:limit] for label in np.unique(split.labels)]
    keep = np.sort(np.concatenate(rows)) if rows else np.empty(0, np.int64)
    return Split(split.images[keep], split.labels[keep])


def positive(name: str, value: int | None) -> int | None:
    """A whole number from 1 up, or None for no limit."""
    return None if value is None else checks.whole(name, value, low=1)


def channel_count(value: int) -> int:
    """3 for colour or 1 for grey."""
    return int(checks.choice("dataset.channels", value, (1, 3)))


def path_given(value: Any, what: str) -> str:
    """A path as text; an empty or missing one is refused with what it should lead to."""
    if not isinstance(value, str) or not value:
        raise ConfigError(f"`dataset.root` must be the path of {what}, got {value!r}")
    return value


def pattern_hint(root: Path) -> str:
    """What to say of a path that is not there and looks like a pattern; else nothing."""
    return " (a pattern like this is for sweeps, with -m)" if has_magic(str(root)) else ""


def name_from(path: str) -> str:
    """A data set's name from its file's or folder's: no extensions, made safe for paths."""
    base = re.split(r"[\\/]", path.rstrip("\\/"))[-1]
    stem = re.sub(r"\.(tar|tgz|zip|npz|gz|xz)\b.*$", "", base.lower())
    return re.sub(r"[^a-z0-9_.-]+", "-", stem).strip("-.")[:64] or "images"
