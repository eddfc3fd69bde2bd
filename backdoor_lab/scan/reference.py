"""python -m backdoor_lab.scan.reference --sets 99 --out FILE: builds the reference of clean sets.

Draws clean synthetic sets of ten classes of 500 images, trains the networks of a scan on each, and
writes the maxima of their statistics to FILE, by default the reference of this package. Can be
interrupted at any time: the same command resumes. To use several processes, run one with
`--share 0/2` and one with `--share 1/2`, then the command without `--share`, which collects the
results.
"""

from __future__ import annotations

import logging
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from backdoor_lab.core import shutdown, streams, validation
from backdoor_lab.core.errors import EXIT_DONE, ConfigError, many
from backdoor_lab.core.options import parser_of, path_of
from backdoor_lab.core.rng import derive
from backdoor_lab.core.store import Store
from backdoor_lab.core.terminal import duration, run_command
from backdoor_lab.data.synthetic import CLASSES, draw
from backdoor_lab.scan.calibration import studentized
from backdoor_lab.scan.images import ScanImages, scan_images
from backdoor_lab.scan.options import ScanOptions
from backdoor_lab.scan.reference_file import COMMITTED, Bin, versions, write_reference
from backdoor_lab.scan.statistics import FILTERS, FLOOR, mean_statistics
from backdoor_lab.training.device import ComputeDevice, machine_of

log = logging.getLogger(__name__)
STAGE = "scan_reference"
PER_CLASS, SMALLEST, LARGEST = 500, 400, 600
TRAINER = {
    "accelerator": "cpu", "precision": "32", "channels_last": True, "threads": None,
    "progress": "none", "checkpoint": True, "cells_per_gpu": 1,
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Exit codes: 0 done, 2 invalid arguments, 75 stopped."""
    parser = parser_of("scan.reference", __doc__)
    parser.add_argument("--sets", type=int, default=99, metavar="N")
    parser.add_argument("--out", type=path_of, default=COMMITTED, metavar="FILE")
    parser.add_argument(
        "--store", type=path_of, default=Path("multirun_reports/.store"), metavar="DIR"
    )
    parser.add_argument("--share", metavar="I/K", help="compute only every K-th set, from set I")
    parser.add_argument("--threads", type=int, help="default: all cores")
    parser.add_argument("--networks", type=int, default=ScanOptions.networks)
    parser.add_argument("--width", type=int, default=ScanOptions.width)
    parser.add_argument("--epochs", type=int, default=ScanOptions.epochs)
    parser.add_argument(
        "--images", type=int, default=PER_CLASS, metavar="N", help="images per class"
    )
    parser.add_argument("--size", type=int, default=ScanOptions.size, help="pixels per side")
    return run_command(parser, _build, arguments)


def _build(asked: Namespace) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    shutdown.install()
    number = validation.whole("--sets", asked.sets, low=1)
    images = validation.whole("--images", asked.images, low=1)
    first, step = share_of(asked.share)
    options = ScanOptions(
        networks=asked.networks, size=asked.size, width=asked.width, epochs=asked.epochs
    )
    if not asked.out.parent.is_dir():
        raise ConfigError(f"`--out` must be a file in an existing folder, got {asked.out}")
    machine = machine_of(TRAINER | {"threads": asked.threads})
    store, began, computed = Store(asked.store), time.monotonic(), 0
    mine = range(first, number, step)
    maxima = []
    for done, each in enumerate(mine, 1):
        row, made = set_maxima(each, images, options, store, machine)
        maxima.append(row)
        computed += made
        left = (time.monotonic() - began) / max(1, computed) * (len(mine) - done)
        log.info("set %d of %d, about %s left", done, len(mine), duration(left * (computed > 0)))
    if asked.share is not None:
        return EXIT_DONE
    spread = (SMALLEST, LARGEST) if images == PER_CLASS else (images, images)
    found = Bin(
        len(CLASSES), *spread, population(number, images, options.size), options.decides(),
        versions(), list(FILTERS), maxima,
    )  # fmt: skip
    write_reference(asked.out, [found])
    log.info("%s: %s", asked.out, many(number, "set"))
    return EXIT_DONE


def population(number: int, images: int, size: int) -> str:
    """Describes the sets of a reference."""
    return (
        f"{number} clean synthetic sets of ten classes of {images} images of {size}x{size} pixels"
        " (dataset=synthetic), trained and scored in the same way"
    )


def set_maxima(
    number: int, images: int, options: ScanOptions, store: Store, machine: ComputeDevice
) -> tuple[list[float], bool]:
    """Returns the maximum over classes of each studentized statistic of a clean set, and whether it
    had to be computed. The store keeps the features of the networks, so that a change of the
    statistics does not train them again."""
    seed = derive(0, streams.SCAN_REFERENCE, number)
    inputs = {"versions": versions(), "options": options.decides(), "images": images, "seed": seed}

    def make(folder: Path) -> dict[str, Any]:
        found = mean_statistics(clean_set(seed, images, options.size), options, store, machine)
        rows = studentized(found.statistics, FLOOR).max(axis=1)
        return {"maxima": [float(f"{each:.6g}") for each in np.asarray(rows)]}

    entry = store.get(STAGE, inputs, make)
    return list(entry.meta["maxima"]), entry.made


def clean_set(seed: int, images: int, size: int) -> ScanImages:
    """Draws a clean set of ten classes of `images` images each."""
    drawn, labels = draw(images, size=size, seed=seed)
    names = [str(row) for row in range(len(labels))]
    return scan_images(drawn, labels, CLASSES, names, "synthetic")


def share_of(text: str | None) -> tuple[int, int]:
    """Returns the first set and the step of `--share`, ``I/K``; (0, 1) for None. Raises
    ConfigError."""
    if text is None:
        return 0, 1
    first, _, step = text.partition("/")
    if not (first.isdecimal() and step.isdecimal() and int(first) < int(step)):
        raise ConfigError(f"`--share` must be I/K with I < K, such as 0/2, got {text!r}")
    return int(first), int(step)


if __name__ == "__main__":
    sys.exit(main())
