"""Base class of data sets. A data set can read all of its images, and can also identify its content
without reading the images."""

from __future__ import annotations

import difflib
import os
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from glob import has_magic
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backdoor_lab import identity, returned
from backdoor_lab.core import validation
from backdoor_lab.core.atomic_io import digest
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.types import ImportedAttack, ImportedFacts
from backdoor_lab.data.splits import HeldOut
from backdoor_lab.data.workspace import Workspace

NEAREST, MAX_NAMES = 3, 10_000
"""How many names similar to that of a missing file are suggested, and how many are examined."""
EMBEDDED = "To run on data that needs no download: python -m backdoor_lab experiment=demo"


@dataclass(frozen=True)
class Split:
    """One split of a data set: `images` uint8 (N, C, H, W) and `labels` int64 (N,)."""

    images: NDArray[Any]
    labels: NDArray[Any]


@dataclass(frozen=True)
class Arrays:
    """Both splits of a data set; ``classes[k]`` is the name of label k. `attack` describes the
    poison in a data set that was poisoned before it was read; None for other data sets."""

    train: Split
    test: Split
    classes: tuple[str, ...]
    attack: ImportedAttack | None = None


class Source(ABC):
    """Base class of data sets. The constructor's parameters are the keys of the YAML file.

    Constructors validate their parameters (ConfigError) and access no file. `limit_train` and
    `limit_test` are the largest numbers of images per class: only the first ones are kept.
    """

    def __init__(
        self, *, name: str | None = None,
        limit_train: int | None = None, limit_test: int | None = None,
    ) -> None:  # fmt: skip
        if name is None:
            raise self._not_initialized("gives no name")
        self.name: str = validation.safe_name("dataset.name", name)
        self.limit_train = positive("dataset.limit_train", limit_train)
        self.limit_test = positive("dataset.limit_test", limit_test)
        self.workspace = Workspace()
        """Creates the arrays into which `read` reads the images; set by the caller of `read`."""
        self.notes: dict[str, Any] = {}
        """Further information for the record; available after `identity` or `read`."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Returns JSON data that identifies the data set's content. It is cheap to compute and
        contains no paths. Raises DataError if files are missing."""

    def known_classes(self) -> tuple[str, ...] | None:
        """Returns the class names if they are known without reading the images, else None. Raises
        DataError if reading the names fails."""
        return None

    def imported(self) -> ImportedFacts | None:
        """Returns what is known about the attack, without reading images, if the data set is
        already poisoned; None for other data sets. Raises DataError if files are damaged."""
        return None

    def is_absent(self) -> bool:
        """Whether `read` would have to download all files."""
        return False

    @abstractmethod
    def read(self) -> Arrays:
        """Returns the whole data set; the caller validates its content. Raises DataError if files
        are missing or damaged."""

    def check_initialized(self) -> None:
        """Raises ConfigError if the constructor of a subclass does not call that of this class."""
        if "workspace" not in vars(self):
            raise self._not_initialized("does not call it")

    def _not_initialized(self, how: str) -> ConfigError:
        here = f"{type(self).__qualname__}.__init__"
        return ConfigError(
            f"`{here}` must call `super().__init__(name=name, limit_train=limit_train,"
            f" limit_test=limit_test)`, of which the limits may be left out, but {how}"
        )

    def fingerprint(self) -> str:
        """Returns a hash that identifies the content without reading all of it. Raises DataError if
        files are missing."""
        self.check_initialized()
        limits = [self.limit_train, self.limit_test]
        marks = identity.of("datasets", self)["datasets"]
        # A data set of a plug-in may be built from others.
        mark = next(iter(marks.values())) if len(marks) == 1 else marks
        kind = f"{type(self).__name__}/{mark}"
        content = self.identity()
        if not isinstance(content, dict):
            raise returned.wrong(self, "identity", content, "a dict that JSON can store")
        return digest({"kind": kind, "limits": limits, "identity": content})

    def limited(self) -> Arrays:
        """Returns the result of `read`, limited to `limit_train` and `limit_test` images per
        class. Raises ConfigError if `read` returns something else than `Arrays`."""
        arrays = self.read()
        _check_arrays(self, arrays)
        return replace(
            arrays,
            train=first_per_class(arrays.train, self.limit_train, self.workspace),
            test=first_per_class(arrays.test, self.limit_test, self.workspace),
        )


def _check_arrays(source: Source, value: object) -> None:
    """Raises ConfigError unless `value`, returned by `source.read`, is made of the right types."""

    def check(part: object, kind: type, expected: str) -> None:
        if not isinstance(part, kind):
            raise returned.wrong(source, "read", part, expected)

    check(value, Arrays, "Arrays(Split(images, labels), Split(images, labels), classes)")
    assert isinstance(value, Arrays)
    for name, split in (("train", value.train), ("test", value.test)):
        check(split, Split, f"Arrays whose `{name}` is Split(images, labels)")
        for key, form in (("images", "uint8 (N, C, H, W)"), ("labels", "int64 (N,)")):
            expected = f"Arrays whose `{name}.{key}` is a NumPy array, {form}"
            check(getattr(split, key), np.ndarray, expected)
    check(value.classes, tuple, "Arrays whose `classes` is a tuple of names")


def divided(
    split: Split, held_out: HeldOut, classes: tuple[str, ...], workspace: Workspace
) -> tuple[Split, Split]:
    """Divides one split into training and test images, in their original order, as arrays of
    `workspace`. `held_out` selects the test images."""
    chosen = np.zeros(len(split.labels), bool)
    for label in np.unique(split.labels):
        rows = np.flatnonzero(split.labels == label)
        chosen[rows] = held_out.held_out(len(rows), classes[label])
    return (
        Split(workspace.rows(split.images, ~chosen), split.labels[~chosen]),
        Split(workspace.rows(split.images, chosen), split.labels[chosen]),
    )


def first_per_class(split: Split, limit: int | None, workspace: Workspace) -> Split:
    """Returns the first `limit` images of every class, in their original order, in an array of
    `workspace`; all images if `limit` is None."""
    if limit is None:
        return split
    rows = [np.flatnonzero(split.labels == label)[:limit] for label in np.unique(split.labels)]
    keep = np.sort(np.concatenate(rows)) if rows else np.empty(0, np.int64)
    return Split(workspace.rows(split.images, keep), split.labels[keep])


def positive(name: str, value: int | None) -> int | None:
    """Returns `value` if it is an integer of at least 1, or None, which means no limit. Raises
    ConfigError for other values."""
    return None if value is None else validation.whole(name, value, low=1)


def channel_count(value: int) -> int:
    """Validates a number of channels: 3 for color, 1 for gray."""
    return int(validation.choice("dataset.channels", value, (1, 3)))


def sides(size: int | None, resize: int | None = None) -> tuple[int | None, int | None]:
    """Validates the options `size` and `resize` of a data set, of which at most one is given."""
    given = {"dataset.size": size, "dataset.resize": resize}
    found = [
        None if value is None else validation.whole(key, value, low=1, below=4097)
        for key, value in given.items()
    ]
    if None not in found:
        raise ConfigError(
            "`dataset.size` and `dataset.resize` both say how images are resized: remove one"
        )
    return found[0], found[1]


def path_given(value: Any, what: str) -> str:
    """Validates a path; `what` names the expected file or folder in the error message."""
    if not isinstance(value, str) or not value:
        raise ConfigError(f"`dataset.root` must be the path of {what}, got {value!r}")
    return value


def missing_hint(root: Path) -> str:
    """Returns a hint for the error message about the path `root`: what glob patterns need if it
    looks like one; the most similar names next to it if it does not exist; else an empty string."""
    if has_magic(str(root)):
        return " (patterns like this work only in sweeps, with -m)"
    try:
        names = [] if root.exists() else sorted(os.listdir(root.parent))
    except OSError:
        names = []
    near = difflib.get_close_matches(root.name, names[:MAX_NAMES], n=NEAREST)
    said = " or ".join(repr(str(root.parent / name)) for name in near)
    return f" (did you mean {said}?)" if near else ""


def name_from(path: str) -> str:
    """Derives the name of a data set from the path of its file or folder. Removes file extensions
    and replaces characters that are unsafe in paths.

    >>> name_from("/data/My Birds.tar.gz")
    'my-birds'
    """
    base = re.split(r"[\\/]", path.rstrip("\\/"))[-1]
    stem = re.sub(r"\.(tar|tgz|zip|npz|gz|xz)\b.*$", "", base.lower())
    return re.sub(r"[^a-z0-9_.-]+", "-", stem).strip("-.")[:64] or "images"
