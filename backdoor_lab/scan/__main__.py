"""python -m backdoor_lab.scan photos.zip --out DIR: is this training set poisoned?

Takes a training set without ground truth and without a test set: a folder or archive of
<class>/<image>, an .npz file, a .csv file with the columns path and label, or dataset=NAME. Trains
small networks on it and looks in each class for a subgroup of unusual images. P values are relative
to a reference of clean sets, or come from trusted clean images (scan.trusted=PATH). Writes a page,
JSON and CSV files to DIR. Options: conf/scan.yaml.

Exit codes: 0 no alarm, 3 alarm, 4 not calibrated (no alarm, but nothing is known about at least one
class), 2 bad input, 75 stopped; the same command resumes.
"""

from __future__ import annotations

import logging
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backdoor_lab.core import shutdown, validation
from backdoor_lab.core.errors import EXIT_DONE, ConfigError, many
from backdoor_lab.core.options import parser_of, path_of
from backdoor_lab.core.paths import check_writable
from backdoor_lab.core.terminal import duration, plain, run_command
from backdoor_lab.scan.configuration import composed

if TYPE_CHECKING:
    from backdoor_lab.scan.images import ScanImages
    from backdoor_lab.scan.options import ScanOptions
    from backdoor_lab.scan.reference_file import Bin


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Exit codes: 0 no alarm, 2 bad input, 3 alarm, 4 not calibrated, 75
    stopped."""
    parser = parser_of("scan", __doc__)
    parser.add_argument(
        "given", nargs="*", metavar="PATH|KEY=VALUE",
        help="the training set, and keys of conf/scan.yaml, such as scan.networks=3",
    )  # fmt: skip
    parser.add_argument("--out", type=path_of, metavar="DIR", help="where to write the report")
    return run_command(parser, _scan, arguments)


def _scan(asked: Namespace) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    config = composed(asked.given)
    dry = validation.flag("dry_run", config["dry_run"])
    if asked.out is None and not dry:
        raise ConfigError("`--out` is missing: give a folder for the report")
    # These import torch, so first make sure that the configuration is valid.
    from backdoor_lab.core.instantiate import build
    from backdoor_lab.core.store import Store
    from backdoor_lab.data.base import Source
    from backdoor_lab.scan.images import check_sizes
    from backdoor_lab.scan.options import ScanOptions
    from backdoor_lab.scan.reading import read_training_set
    from backdoor_lab.scan.reference_file import read_reference
    from backdoor_lab.scan.run import run_scan
    from backdoor_lab.training.device import machine_of

    options, trusted_path, reference = ScanOptions.of(config)
    machine = machine_of(config["trainer"])
    source = build("dataset", config["dataset"], Source)
    root = Path(config["store"]["root"])
    for folder in (root, *([] if asked.out is None else [asked.out])):
        check_writable(folder)
    found = read_training_set(source, options.size)
    check_sizes(found)
    trusted = None if trusted_path is None else _trusted(trusted_path, options)
    bins = read_reference(reference)
    store = Store(root)
    if dry:
        print(estimate(found, options, store, machine, bins, trusted is not None))
        return EXIT_DONE
    shutdown.install()
    report = run_scan(found, options, store, machine, bins, trusted=trusted)
    report.write(asked.out)
    print(plain_lines(report.text()))
    print(plain(f"{asked.out / 'index.html'}"))
    return report.exit_code


def estimate(
    found: ScanImages,
    options: ScanOptions,
    store: Any,
    machine: Any,
    bins: Sequence[Bin],
    trusted: bool,
) -> str:
    """Returns what a scan would examine and how long it would take, as text. Trains on a few
    batches to measure the time."""
    from backdoor_lab.scan.canaries import copies_for, kinds_of
    from backdoor_lab.scan.images import examined, judged
    from backdoor_lab.scan.networks import seconds_per_epoch, stored
    from backdoor_lab.scan.reference_file import bin_for

    part = found.part(examined(found, options.seed))
    training = part.training_set()
    ready = len(stored(training, options, store))
    # The two folds together are as large as the set.
    missing = options.networks - ready + trusted
    each = seconds_per_epoch(training, options, machine) * options.epochs
    seconds = each * missing
    chosen, why = bin_for(bins, part, options)
    small = [name for y, name in enumerate(part.classes) if y not in judged(part)]
    lines = [
        f"{plain(found.name)}: {many(len(found), 'image')}, {len(part)} examined; classes:"
        f" {len(part.classes)}",
        f"networks: {options.networks}, {ready} stored; about {duration(seconds)} of training",
        "p values: from trusted images" if trusted
        else why if chosen is not None else f"not calibrated: {why}",
    ]  # fmt: skip
    if kinds_of(options.canaries) and (trusted or chosen is not None):
        one = each * (options.networks + trusted)
        copies = copies_for(options.minutes, one)
        lines.append(f"canaries: about {copies} copies of the set, in {options.minutes:g} min")
    if small:
        lines.append(f"too small to judge: {', '.join(map(plain, small))}")
    return "\n".join(lines)


def plain_lines(text: str) -> str:
    """Returns `text` with unprintable characters replaced, line by line."""
    return "\n".join(map(plain, text.splitlines()))


def _trusted(path: Path, options: ScanOptions) -> ScanImages:
    from backdoor_lab.core.instantiate import build
    from backdoor_lab.data.base import Source
    from backdoor_lab.scan.reading import read_training_set

    config = composed([str(path)])
    return read_training_set(build("dataset", config["dataset"], Source), options.size)


if __name__ == "__main__":
    sys.exit(main())
