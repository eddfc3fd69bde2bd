"""python -m backdoor_lab.scan.trials --change blended:0.01 --out FILE: how often is poison found?

Scans sets of ten classes of 500 synthetic images, or disjoint parts of a real data set
(`dataset=cifar10`), relative to the reference of this package. `--change` is what is done to each
set before, NAME or NAME:RATE (0.05): `none`; a trigger, planted in RATE of one class; or one of the
changes that are no backdoor: symmetric_noise, asymmetric_noise, near_duplicates, long_tail,
two_classes. Writes one row per change and set to a CSV file. Can be interrupted: the same command
resumes.
"""

from __future__ import annotations

import datetime
import logging
import math
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from backdoor_lab.analysis.intervals import exact
from backdoor_lab.core import shutdown, streams, validation
from backdoor_lab.core.atomic_io import digest, write_atomic
from backdoor_lab.core.errors import EXIT_DONE, ConfigError, DataError, many
from backdoor_lab.core.instantiate import build
from backdoor_lab.core.options import parser_of, path_of
from backdoor_lab.core.rng import derive, numpy_generator
from backdoor_lab.core.store import Store
from backdoor_lab.core.terminal import run_command
from backdoor_lab.data.base import Source
from backdoor_lab.scan.canaries import Canary, trigger_of
from backdoor_lab.scan.changes import CHANGES
from backdoor_lab.scan.configuration import composed
from backdoor_lab.scan.copies import scan_copies
from backdoor_lab.scan.images import ScanImages, judged
from backdoor_lab.scan.options import ScanOptions
from backdoor_lab.scan.reading import read_training_set
from backdoor_lab.scan.reference import PER_CLASS, TRAINER, clean_set, share_of
from backdoor_lab.scan.reference_file import Bin, bin_for, read_reference
from backdoor_lab.scan.run import by_reference, run_scan
from backdoor_lab.tables.sheets import csv_of_frame
from backdoor_lab.training.device import ComputeDevice, machine_of

log = logging.getLogger(__name__)
COLUMNS = ("data", "change", "rate", "set", "class", "images", "named", "p", "statistic", "asr",
           "other alarms", "other statistic", "exit code", "date", "machine")  # fmt: skip
RATE = 0.05


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Exit codes: 0 done, 2 invalid arguments, 75 stopped."""
    parser = parser_of("scan.trials", __doc__)
    parser.add_argument(
        "given", nargs="*", metavar="KEY=VALUE", help="a data set: dataset=NAME ..."
    )
    parser.add_argument(
        "--change", default="none", metavar="NAME[:RATE],...", help="RATE: share of a class (0.05)"
    )
    parser.add_argument("--sets", type=int, default=20, metavar="N", help="per change (20)")
    parser.add_argument("--out", type=path_of, required=True, metavar="FILE")
    parser.add_argument("--reference", type=path_of, metavar="FILE")
    parser.add_argument(
        "--store", type=path_of, default=Path("multirun_reports/.store"), metavar="DIR"
    )
    parser.add_argument("--share", metavar="I/K", help="compute only every K-th set, from set I")
    parser.add_argument("--threads", type=int, help="default: all cores")
    return run_command(parser, _run, arguments)


def _run(asked: Namespace) -> int:
    import pandas as pd

    changes = _changes(asked.change)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    shutdown.install()
    number = validation.whole("--sets", asked.sets, low=1)
    first, step = share_of(asked.share)
    bins = read_reference(asked.reference)
    if not bins:
        raise ConfigError("there is no reference in this version: give one with --reference FILE")
    if not asked.out.parent.is_dir():
        raise ConfigError(f"`--out` must be a file in an existing folder, got {asked.out}")
    whole = _given(asked.given)
    machine, store = machine_of(TRAINER | {"threads": asked.threads}), Store(asked.store)
    made = {"date": str(datetime.datetime.now(datetime.UTC).date()), "machine": machine.describe()}
    rows = []
    for change, rate in changes:
        mine = range(first, number, step)
        found = []
        for each in mine:
            found.append(trial(each, whole, change, rate, bins, store, machine) | made)
            log.info("%s, set %d: %d of %d done", change, each, len(found), len(mine))
        rows += found
        # Written after each change, so that an interrupted command leaves what is complete.
        frame = pd.DataFrame(rows, columns=list(COLUMNS))
        write_atomic(asked.out, csv_of_frame(frame).encode())
        for line in _summary(found):
            print(f"{change}, rate {rate:g}: {line}")
    return EXIT_DONE


def _summary(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Returns the shares of the calibrated sets in which the changed class, if there is one, and
    another class raised an alarm."""
    known = [row for row in rows if row["p"] is not None]
    lines = [f"not calibrated: {many(len(rows) - len(known), 'set')}"] * (len(known) < len(rows))
    for what in (["named"] * any(row["class"] for row in rows) + ["other alarms"]) * bool(known):
        hits = sum(row[what] > 0 for row in known)
        low, high = (100 * limit for limit in exact(hits, len(known)))
        sets = many(len(known), "set")
        lines.append(f"{what} in {hits} of {sets} ({low:.1f} to {high:.1f} %)")
    return lines


def _changes(text: str) -> list[tuple[str, float]]:
    """Returns the changes of `--change` and their rates. Raises ConfigError."""
    found = []
    for each in text.split(","):
        name, colon, rate = each.partition(":")
        value = _number(rate) if colon else RATE
        if not 0 < value <= 0.5:
            raise ConfigError(f"`--change {each}`: RATE must be a number, 0 < RATE <= 0.5")
        if name != "none" and name not in CHANGES:
            trigger_of(name, "--change", ["none", *CHANGES])
        found.append((name, value))
    return found


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def trial(
    number: int, whole: ScanImages | None, change: str, rate: float, bins: Sequence[Bin],
    store: Store, machine: ComputeDevice,
) -> dict[str, Any]:  # fmt: skip
    """Scans set `number`: a synthetic one, or part `number` of `whole`, after a change. Returns a
    row with `COLUMNS`."""
    options = ScanOptions(canaries="none", seed=number)
    seed = derive(number, streams.SCAN_TRIAL)
    found = clean_set(seed, PER_CLASS, options.size) if whole is None else part_of(whole, number)
    row = {"data": found.name, "change": change, "rate": rate, "set": number}
    if change in CHANGES or change == "none":
        expected: list[int] = []
        if change in CHANGES:
            found, expected = CHANGES[change](found, rate, seed)
        report = run_scan(found, options, store, machine, bins)
        alarms = [y for y, each in enumerate(report.findings) if each.alarm]
        p = [each.p for each in report.findings if each.p is not None]
        values = [each.statistic for each in report.findings]
        own = [v for y, v in enumerate(values) if v is not None and y in expected]
        others = [v for y, v in enumerate(values) if v is not None and y not in expected]
        return row | {
            "class": " ".join(found.classes[y] for y in expected), "images": len(found),
            "named": len(set(alarms) & set(expected)), "p": min(p, default=None),
            "statistic": max(own, default=None), "asr": None,
            "other alarms": len(set(alarms) - set(expected)),
            "other statistic": max(others, default=None), "exit code": report.exit_code,
        }  # fmt: skip
    chosen, why = bin_for(bins, found, options)
    if chosen is None:
        raise ConfigError(f"no reference applies: {why}")
    label = int(numpy_generator(seed, streams.SCAN_TRIAL).choice(judged(found)))
    canary = Canary(number, change, rate, label, max(1, round(rate * found.sizes[label])))
    [outcome] = scan_copies(
        found, [canary], torch.ones(len(found), dtype=torch.bool), options,
        lambda _, against: by_reference(against, chosen, why).p, digest(chosen.maxima), store,
        machine,
    )  # fmt: skip
    alarm = outcome.found or outcome.others
    return row | {
        "class": found.classes[label], "images": canary.images, "named": int(outcome.found),
        "p": outcome.p, "statistic": outcome.statistic, "asr": outcome.asr,
        "other alarms": outcome.others, "other statistic": outcome.other_statistic,
        "exit code": 3 if alarm else 0,
    }  # fmt: skip


def part_of(whole: ScanImages, number: int) -> ScanImages:
    """Returns part `number` of a data set: the next `PER_CLASS` images of each class. Raises
    DataError if a class has too few."""
    rows = []
    for label, name in enumerate(whole.classes):
        of_class = (whole.labeled.labels == label).nonzero().flatten()
        taken = of_class[number * PER_CLASS : (number + 1) * PER_CLASS]
        if len(taken) < PER_CLASS:
            raise DataError(
                f"data set {whole.name}: the class {name} has {many(len(of_class), 'image')}, too"
                f" few for {number + 1} parts of {PER_CLASS}; reduce --sets"
            )
        rows.append(taken)
    return whole.part(torch.cat(rows).sort().values)


def _given(words: Sequence[str]) -> ScanImages | None:
    """Reads the data set that `words` choose; None if there are no words."""
    if not words:
        return None
    source = build("dataset", composed(words)["dataset"], Source)
    return read_training_set(source, ScanOptions.size)


if __name__ == "__main__":
    sys.exit(main())
