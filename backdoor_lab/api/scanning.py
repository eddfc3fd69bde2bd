"""Scans a training set in memory for poison."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from backdoor_lab.api.arrays import as_images, as_labels, as_seed
from backdoor_lab.api.boundary import boundary
from backdoor_lab.api.context import pair
from backdoor_lab.core.store import Store
from backdoor_lab.scan.canaries import as_text
from backdoor_lab.scan.images import ScanImages, check_sizes, scan_images
from backdoor_lab.scan.options import ScanOptions
from backdoor_lab.scan.reference_file import read_reference
from backdoor_lab.scan.report import ScanReport
from backdoor_lab.scan.run import run_scan
from backdoor_lab.training.device import machine_of

TRAINER = {
    "accelerator": "auto", "precision": "32", "channels_last": True, "threads": None,
    "progress": "none", "checkpoint": True, "cells_per_gpu": 1,
}  # fmt: skip


def scan_dataset(
    images: Any, labels: Any, *, trusted: tuple[Any, Any] | None = None, alpha: float = 0.05,
    networks: int = 2, canaries: str | Sequence[str] = "default", minutes: float = 20.0,
    seed: int = 0, size: int = 32, width: int = 8, epochs: int = 6,
    store: str | Path | None = None, reference: str | Path | None = None,
) -> ScanReport:  # fmt: skip
    """Scans a training set for poison, without ground truth.

    Trains small networks on the images and looks in each class for a subgroup of unusual images. It
    takes minutes. P values are relative to a reference of clean sets that were trained in the same
    way, which exists only for some numbers and sizes of classes, or come from `trusted`. Otherwise
    the scan is not calibrated: classes are ordered, but there is no verdict.

    Args:
        images: The training images, uint8 (n, C, H, W) with C 1 or 3, a NumPy array or a tensor.
            They are resized to `size` x `size`.
        labels: Their labels, integers (n,) in 0..k-1.
        trusted: A pair of images and labels, of the same form and classes: clean images from the
            same source, at least ten of a class. P values are then from permutations.
        alpha: A class with p <= `alpha` raises an alarm.
        networks: The number of networks; their statistics are averaged.
        canaries: Backdoors that are planted into copies of the set to measure what the scan finds:
            ``"default"``, ``"none"`` or a list of triggers. There are none without p values.
        minutes: How long the scans of these copies may take. It determines their number.
        seed: Determines all random numbers; it corresponds to the seed of the command line.
        size: Height and width of the networks' input, in pixels.
        width: The width of the networks.
        epochs: The number of epochs of training per network.
        store: A folder for networks and statistics, from which an interrupted scan resumes. None: a
            temporary folder.
        reference: A file written by ``python -m backdoor_lab.scan.reference``. None: that of this
            package.

    Returns:
        The report: ``exit_code`` (0 no alarm, 3 alarm, 4 not calibrated), the data frames
        ``classes``, ``suspects`` and ``power``, ``text()``, ``json()``, ``to_html(path)`` and
        ``write(folder)``. In ``suspects``, the path of an image is its row number.

    Raises:
        ValueError: An argument has the wrong shape, dtype or range; there are fewer than two
            classes of at least 50 images; or `alpha` is smaller than any p value can be.
        TypeError: An argument has the wrong type.

    Example:
        >>> import backdoor_lab as bl, numpy as np
        >>> rng = np.random.default_rng(0)
        >>> images = rng.integers(0, 256, (100, 3, 8, 8), dtype=np.uint8)
        >>> report = bl.scan_dataset(images, np.arange(100) % 2, size=8, width=2, epochs=1)
        >>> report.exit_code, bool(report.classes["calibrated"].any())
        (4, False)
    """
    with boundary():
        options = ScanOptions(
            networks=networks, alpha=alpha, size=size, width=width, epochs=epochs,
            canaries=as_text(canaries), minutes=minutes, seed=as_seed(seed),
        )  # fmt: skip
        bins = read_reference(None if reference is None else Path(reference))
        values, given = _images("images", images, labels)
        classes = int(given.max()) + 1 if len(given) else 0
        found = _named(values, given, classes, options.size)
        check_sizes(found)
        clean = None
        if trusted is not None:
            first, second = pair("trusted", trusted)
            shown, true = _images("trusted", first, second)
            clean = _named(shown, true, len(found.classes), options.size)
        machine = machine_of(TRAINER)
        if store is not None:
            return run_scan(found, options, Store(store), machine, bins, trusted=clean)
        with tempfile.TemporaryDirectory() as folder:
            return run_scan(found, options, Store(folder), machine, bins, trusted=clean)


def _images(name: str, images: object, labels: object) -> tuple[Any, Tensor]:
    values, _ = as_images(name, images)
    given = as_labels("labels", labels, len(values))
    return np.ascontiguousarray(values.numpy()), given


def _named(images: Any, labels: Tensor, classes: int, size: int) -> ScanImages:
    names = [str(row) for row in range(len(images))]
    return scan_images(images, labels.numpy(), [*map(str, range(classes))], names, "images", size)
