"""Runs a scan: networks, statistics, p values, suspects."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from backdoor_lab.core import streams
from backdoor_lab.core.atomic_io import digest
from backdoor_lab.core.errors import many
from backdoor_lab.core.store import Store
from backdoor_lab.core.terminal import duration
from backdoor_lab.core.types import LabeledImages
from backdoor_lab.scan.calibration import LEAST, check_alpha, max_t, studentized
from backdoor_lab.scan.canaries import copies_for, kinds_of, schedule
from backdoor_lab.scan.copies import scan_copies
from backdoor_lab.scan.history import remembered
from backdoor_lab.scan.images import ScanImages, check_sizes, examined, judged, together
from backdoor_lab.scan.networks import Report, network_stage
from backdoor_lab.scan.options import ScanOptions
from backdoor_lab.scan.power import Outcome, counted
from backdoor_lab.scan.reference_file import Bin, bin_for
from backdoor_lab.scan.report import ClassFinding, ScanReport, Suspect
from backdoor_lab.scan.statistics import FILTERS, FLOOR, SetStatistics, mean_statistics
from backdoor_lab.scan.trusted import (
    FEWEST_TRUSTED,
    Fold,
    class_p,
    combined,
    folds,
    permutations_for,
    same_classes,
)
from backdoor_lab.training.device import ComputeDevice

log = logging.getLogger(__name__)
PValues = Sequence[float | None]
SUSPECTS = 10
"""One in this many images of a class is listed as a suspect: the share that the filter assumes to
be poisoned. How many images of the class are poisoned is not known."""


@dataclass(frozen=True)
class Calibration:
    """P values of the judged classes, in their order; None where there is none. `text` says what
    they are relative to, or why there are none."""

    p: PValues
    text: str
    population: str | None = None


@dataclass
class _Clock:
    """Logs each epoch with the time left for all `networks` of a scan."""

    networks: int
    began: float = field(default_factory=time.monotonic)
    finished: int = 0

    def report(self, number: int, epoch: int, epochs: int, seconds: float) -> None:
        """Logs the end of an epoch that took `seconds`."""
        left = seconds * ((self.networks - number) * epochs - epoch)
        log.info(
            "network %d of %d, epoch %d of %d, about %s left",
            number + 1, self.networks, epoch, epochs, duration(max(0.0, left)),
        )  # fmt: skip


def run_scan(
    given: ScanImages,
    options: ScanOptions,
    store: Store,
    machine: ComputeDevice,
    bins: Sequence[Bin],
    *,
    trusted: ScanImages | None = None,
) -> ScanReport:
    """Scans a training set relative to the reference `bins`, or with `trusted` clean images. Stored
    networks and statistics are reused. Raises ConfigError if
    `scan.alpha` is too small for the reference, and DataError if `trusted` does not fit."""
    check_sizes(given)
    found = given.part(examined(given, options.seed))
    classes = judged(found)
    checked = None if trusted is None else same_classes(trusted, found)
    chosen, why = bin_for(bins, found, options)
    if checked is None and chosen is not None:
        check_alpha(options.alpha, len(chosen.null))
    clock = _Clock(options.networks + 2 * (checked is not None))
    statistics = mean_statistics(found, options, store, machine, clock.report)
    against = studentized(statistics.statistics, FLOOR)
    if checked is None:
        calibration = by_reference(against, chosen, why)
    else:
        calibration = by_trusted(found, checked, options, store, machine, clock.report)
    report = _report(given, found, classes, against, statistics, calibration, options)

    def p_values(copy: ScanImages, of_copy: NDArray[np.float64]) -> PValues:
        if checked is None:
            return by_reference(of_copy, chosen, why).p
        return by_trusted(copy, checked, options, store, machine).p

    relative_to = digest(None if chosen is None else chosen.maxima)
    if checked is not None:
        relative_to = f"trusted {checked.digest}"
    seconds = statistics.seconds * (1 + (checked is not None))
    power = _power(report, seconds, p_values, relative_to, store, machine)
    finished = replace(report, power_note=power[0], outcomes=power[1])
    return replace(finished, earlier=remembered(finished, given, relative_to, store))


def _power(
    report: ScanReport, seconds: float, p_values: Callable[..., PValues], relative_to: str,
    store: Store, machine: ComputeDevice,
) -> tuple[str, list[Outcome]]:  # fmt: skip
    """Scans copies of the set with canaries, of which one takes about `seconds`. Returns what was
    done as text, and the outcomes."""
    options, found = report.options, report.images
    kinds = kinds_of(options.canaries)
    if not kinds:
        return "no canaries were planted (scan.canaries=none)", []
    findings = report.findings
    quiet = [y for y in judged(found) if findings[y].p is not None and not findings[y].alarm]
    if not quiet:
        return "no canaries were planted: no class has a p value without an alarm", []
    usable = torch.ones(len(found), dtype=torch.bool)
    usable[[each.index for each in report.listed]] = False
    copies = copies_for(options.minutes, seconds)
    if not copies:
        return (
            f"no canaries were planted: one copy takes about {duration(seconds)}, more than"
            f" scan.minutes={options.minutes:g}"
        ), []
    canaries = schedule(found, kinds, quiet, copies, options.seed)
    outcomes = scan_copies(found, canaries, usable, options, p_values, relative_to, store, machine)
    planted_in = found.labeled.images if found.originals is None else found.originals
    where = " x ".join(map(str, planted_in.shape[2:])) + " pixels"
    said = "1 copy" if copies == 1 else f"{copies} copies"
    return f"{said} with one canary each, planted at {where}", outcomes


def by_reference(against: NDArray[np.float64], chosen: Bin | None, why: str) -> Calibration:
    """Returns the p values of the studentized statistics (filters, classes) relative to a bin; none
    if there is no bin, for the reason `why`."""
    if chosen is None:
        return Calibration([None] * against.shape[1], f"not calibrated: {why}")
    p = max_t(against.max(axis=0), chosen.null)
    text, largest = why, float(chosen.null.max())
    if largest < LEAST:
        text += (
            f". The largest value there is {largest:.2f}. A class raises an alarm from {LEAST:g}, a"
            " constant chosen on parts of CIFAR-10 and Fashion-MNIST; so scan.alpha makes no"
            " difference, and p is not a rate of false alarms on other data"
        )
    return Calibration([float(each) for each in p], text, chosen.population)


def by_trusted(
    found: ScanImages, trusted: LabeledImages, options: ScanOptions, store: Store,
    machine: ComputeDevice, report: Report | None = None,
) -> Calibration:  # fmt: skip
    """Returns p values from trusted images: a network is trained on each fold."""
    labels, classes = found.labeled.labels, judged(found)
    fold = folds(labels, len(found.classes), options.seed)
    number = permutations_for(len(classes), options.alpha, options.permutations)
    p: list[list[float | None]] = []
    for own in (0, 1):
        training = found.part((fold == own).nonzero().flatten()).training_set()
        rest = found.part((fold != own).nonzero().flatten())
        shown = together(rest.labeled, trusted)
        layers = network_stage(
            training, shown, options.networks + own, options, store, machine,
            purpose=streams.SCAN_FOLD, report=report,
        )  # fmt: skip
        ours = torch.arange(len(shown)) < len(rest)
        log.info("fold %d of 2: %s", own + 1, many(number, "permutation"))
        p.append([
            class_p(_fold(list(layers.values.values()), shown.labels, ours, label), label, own,
                    number, options.seed)
            for label in classes
        ])  # fmt: skip
    text = (
        f"p values are from {number} permutations of the examined and the trusted images of each"
        " class: valid if the trusted images and the clean images of the set are exchangeable"
    )
    few = [found.classes[y] for y, each in zip(classes, p[0], strict=True) if each is None]
    if few:
        text += f". Fewer than {FEWEST_TRUSTED} trusted images: {', '.join(few)}"
    return Calibration(combined(*p), text)


def _fold(
    layers: Sequence[torch.Tensor], labels: torch.Tensor, ours: torch.Tensor, label: int
) -> Fold:
    of_class = labels == label
    return Fold(
        [values[of_class & ours] for values in layers],
        [values[of_class & ~ours] for values in layers],
    )


def _report(
    given: ScanImages, found: ScanImages, classes: Sequence[int], against: NDArray[np.float64],
    statistics: SetStatistics, calibration: Calibration, options: ScanOptions,
) -> ScanReport:  # fmt: skip
    positions = {label: column for column, label in enumerate(classes)}
    findings = []
    for label, name in enumerate(given.classes):
        column = positions.get(label)
        images, seen = given.sizes[label], found.sizes[label]
        if column is None:
            findings.append(ClassFinding(name, images, seen))
            continue
        p = calibration.p[column]
        strongest = int(against[:, column].argmax())
        scores = statistics.scores[strongest][found.labeled.labels == label]
        findings.append(ClassFinding(
            name, images, seen, float(against[strongest, column]), list(FILTERS)[strongest], p,
            p is not None and p <= options.alpha, counted(scores),
        ))  # fmt: skip
    shown = [label for label in classes if findings[label].alarm]
    if not shown and any(p is None for p in calibration.p):
        # Without p values, the most conspicuous class is shown, but is no alarm.
        shown = [classes[int(against.max(axis=0).argmax())]]
    suspects = [
        each
        for label in shown
        for each in _suspects(found, label, against[:, positions[label]], statistics)
    ]
    return ScanReport(
        given.name, options.alpha, findings, suspects, calibration.text, calibration.population,
        statistics.accuracies, found, options,
    )  # fmt: skip


def _suspects(
    found: ScanImages, label: int, against: NDArray[np.float64], statistics: SetStatistics
) -> list[Suspect]:
    """Returns the suspects of a class, the most suspicious first, by the scores of the filter whose
    statistic is the largest."""
    where = (found.labeled.labels == label).nonzero().flatten()
    scores = statistics.scores[int(against.argmax())][where]
    number = max(1, len(where) // SUSPECTS)
    order = scores.sort(descending=True, stable=True).indices[:number]
    return [
        Suspect(found.names[i], i, found.classes[label], float(scores[at]), rank)
        for rank, (at, i) in enumerate(
            zip(order.tolist(), where[order].tolist(), strict=True), 1
        )
    ]  # fmt: skip
