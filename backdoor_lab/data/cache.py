"""Opens data sets. Each is validated and written to the store once, as .npy files, which are then
memory-mapped."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from backdoor_lab import identity
from backdoor_lab.core.artifacts import map_split, split_files, stored_attack, write_attack
from backdoor_lab.core.atomic_io import canonical
from backdoor_lab.core.errors import many
from backdoor_lab.core.lazy import torch
from backdoor_lab.core.store import Store
from backdoor_lab.core.types import Dataset, ImportedAttack, LabeledImages
from backdoor_lab.data.base import Arrays, Source, Split
from backdoor_lab.data.kinds import counted
from backdoor_lab.data.validate import checked
from backdoor_lab.data.workspace import Workspace, pieces

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Unstored:
    """A data set that has been read and validated but is not in a store."""

    arrays: Arrays
    digests: dict[str, str]
    notes: dict[str, Any]


_told = set[str]()
_unstored: dict[str, _Unstored] = {}
"""Data sets, by fingerprint, that were read to validate a command. They are kept in memory because
a refused command must not write to the store."""


def open_dataset(source: Source, store: Store) -> Dataset:
    """Opens the data set of `source` as memory-mapped tensors. Writing to a tensor does not change
    its file.

    If the store is read-only and does not have the data set, the tensors are in memory. If the same
    process later opens the data set with a writable store, the arrays in memory are written to that
    store. Raises DataError if the data is missing, damaged or breaks a rule of `validate`.
    """
    fingerprint = source.fingerprint()
    inputs = _inputs(fingerprint)

    def make(folder: Path) -> dict[str, Any]:
        return _write(folder, source, _unstored.get(fingerprint))

    entry = store.find("data", inputs) if store.read_only else store.get("data", inputs, make)
    if entry is None:
        read = _read(source, fingerprint)
        _tell(source.name, read.notes)
        return _in_memory(source, read)
    _unstored.pop(fingerprint, None)
    # The other files in an image folder may have changed since the images were stored.
    notes = {**entry.meta.get("notes", {}), **source.notes}
    _tell(source.name, notes)
    classes = tuple(entry.meta["classes"])
    train, test = (
        _mapped(entry.path, split, classes, entry.meta["digests"][split])
        for split in ("train", "test")
    )
    return Dataset(source.name, train, test, notes, stored_attack(entry.path, entry.meta))


def classes_and_fingerprint(source: Source, store: Store) -> tuple[tuple[str, ...], str]:
    """Returns the class names of `source` and its fingerprint; reads the images only if necessary.
    Raises the same errors as `open_dataset`."""
    fingerprint = source.fingerprint()
    entry = store.find("data", _inputs(fingerprint))
    if entry is not None:
        return tuple(entry.meta["classes"]), fingerprint
    return source.known_classes() or _read(source, fingerprint).arrays.classes, fingerprint


def is_stored(source: Source, store: Store) -> bool:
    """Whether `store` has the complete data set of `source`."""
    return store.find("data", _inputs(source.fingerprint())) is not None


def _inputs(fingerprint: str) -> dict[str, Any]:
    return {"source": fingerprint, "version": identity.stage("data")}


def _read(source: Source, fingerprint: str) -> _Unstored:
    if fingerprint not in _unstored:
        _unstored[fingerprint] = _validated(source, Workspace())
    return _unstored[fingerprint]


def _validated(source: Source, workspace: Workspace) -> _Unstored:
    source.workspace = workspace
    arrays = checked(source.limited(), f"data set {source.name}", workspace)
    splits = {"train": arrays.train, "test": arrays.test}
    digests = {name: content_digest(each, arrays.classes) for name, each in splits.items()}
    if arrays.attack is not None:
        arrays = replace(arrays, attack=replace(arrays.attack, digest=_digest(arrays.attack)))
    return _Unstored(arrays, digests, dict(source.notes))


def _in_memory(source: Source, read: _Unstored) -> Dataset:
    arrays = read.arrays
    train, test = (
        LabeledImages(
            torch.from_numpy(np.require(split.images, requirements="W")),
            torch.from_numpy(np.require(split.labels, requirements="W")),
            arrays.classes,
            read.digests[name],
        )
        for name, split in (("train", arrays.train), ("test", arrays.test))
    )
    return Dataset(source.name, train, test, read.notes, arrays.attack)


def _tell(name: str, notes: dict[str, Any]) -> None:
    """Logs unused files and skipped images, once per process."""
    said = canonical([name, notes])
    if said in _told:
        return
    _told.add(said)
    unused = notes.get("not_used", {}).get("by_ending")
    if unused:
        log.warning(
            "data set %s: ignored %s without a supported image format (%s); the record lists them",
            name, many(sum(unused.values()), "file"), counted(unused),
        )  # fmt: skip
    skipped = notes.get("skipped", {}).get("count")
    if skipped:
        log.warning(
            "data set %s: skipped %s (dataset.skip_broken); the record lists them",
            name, many(skipped, "damaged image"),
        )  # fmt: skip


def overlap(dataset: Dataset) -> int:
    """Returns the number of test images that are byte-identical to a training image."""
    seen = set(_row_hashes(dataset.train.images.numpy()))
    return sum(row in seen for row in _row_hashes(dataset.test.images.numpy()))


def content_digest(split: Split, classes: tuple[str, ...]) -> str:
    """Returns the SHA-256 of a split's shape, pixels, labels and class names."""
    head = canonical([list(split.images.shape), "uint8", "int64", list(classes)])
    total = hashlib.sha256(head.encode())
    for part in pieces(split.images.shape):
        total.update(np.ascontiguousarray(split.images[part]).data)
    total.update(np.ascontiguousarray(split.labels, "<i8").data)
    return total.hexdigest()


def _write(folder: Path, source: Source, known: _Unstored | None) -> dict[str, Any]:
    workspace = Workspace(folder)
    read = known or _validated(source, workspace)
    (train_images, train_labels), (test_images, test_labels) = (
        split_files(folder, split) for split in ("train", "test")
    )
    train, test = read.arrays.train, read.arrays.test
    workspace.write({
        train_images: train.images, train_labels: train.labels,
        test_images: test.images, test_labels: test.labels,
    })  # fmt: skip
    meta: dict[str, Any] = {"classes": list(read.arrays.classes), "digests": read.digests}
    if read.arrays.attack is not None:
        meta["attack"] = write_attack(folder, read.arrays.attack)
    return meta | ({"notes": read.notes} if read.notes else {})


def _digest(attack: ImportedAttack) -> str:
    """Returns a hash of everything that is known about an attack."""
    total = hashlib.sha256(canonical(attack.normalization).encode())
    for name, array in attack.arrays.items():
        total.update(canonical([name, str(array.dtype), list(array.shape)]).encode())
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()


def _mapped(
    folder: Path, split: Literal["train", "test"], classes: tuple[str, ...], digest: str
) -> LabeledImages:
    images, labels = map(torch.from_numpy, map_split(folder, split, mode="c"))
    return LabeledImages(images, labels, classes, digest)


def _row_hashes(images: NDArray[Any]) -> list[bytes]:
    return [
        hashlib.blake2b(row, digest_size=16).digest()
        for part in pieces(images.shape)
        for row in np.ascontiguousarray(images[part])
    ]
