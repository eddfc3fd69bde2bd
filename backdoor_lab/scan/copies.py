"""Scans copies of a set with canaries. Each copy is one stage of the store, as are its networks, so
that an interrupted scan resumes, and changed statistics do not train networks again."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backdoor_lab import identity
from backdoor_lab.core.errors import many
from backdoor_lab.core.store import Store
from backdoor_lab.core.terminal import duration
from backdoor_lab.core.types import LabeledImages
from backdoor_lab.scan.attacker import context_of
from backdoor_lab.scan.calibration import studentized
from backdoor_lab.scan.canaries import Canary, described, plant
from backdoor_lab.scan.images import ScanImages, judged, together
from backdoor_lab.scan.networks import network_stage
from backdoor_lab.scan.options import ScanOptions
from backdoor_lab.scan.power import Outcome, counted
from backdoor_lab.scan.reference_file import versions
from backdoor_lab.scan.statistics import FLOOR, SetStatistics, statistics_of
from backdoor_lab.training.device import ComputeDevice

log = logging.getLogger(__name__)
STAGE = "scan_canary"
PValues = Callable[[ScanImages, NDArray[np.float64]], Sequence[float | None]]
"""Returns the p values of the judged classes of a set, given its studentized statistics."""


def scan_copies(
    found: ScanImages, canaries: Sequence[Canary], usable: Tensor, options: ScanOptions,
    p_values: PValues, relative_to: str, store: Store, machine: ComputeDevice,
) -> list[Outcome]:  # fmt: skip
    """Scans one copy of `found` per canary, or reads the stored results. Poison is made from the
    images that are `usable`, bool (n,). `relative_to` identifies what `p_values` are relative
    to."""
    outcomes, began, computed = [], time.monotonic(), 0
    for done, canary in enumerate(canaries, 1):
        inputs = {
            "version": identity.stage(STAGE), "versions": versions(), "set": found.labeled.digest,
            "canary": described(canary), "usable": usable.nonzero().flatten().tolist(),
            "options": options.decides(), "seed": options.seed, "relative to": relative_to,
        }  # fmt: skip

        def make(folder: Path, canary: Canary = canary) -> dict[str, Any]:
            return _scanned(found, canary, usable, options, p_values, store, machine)

        entry = store.get(STAGE, inputs, make)
        computed += entry.made
        outcomes.append(_outcome(canary, entry.meta, options.alpha))
        left = (time.monotonic() - began) / max(1, computed) * (len(canaries) - done)
        log.info(
            "copy %d of %d (%s, %s): %s, about %s left", done, len(canaries), canary.kind,
            many(canary.images, "image"), "found" if outcomes[-1].found else "missed",
            duration(left * (computed > 0)),
        )  # fmt: skip
    return outcomes


def _scanned(
    found: ScanImages, canary: Canary, usable: Tensor, options: ScanOptions, p_values: PValues,
    store: Store, machine: ComputeDevice,
) -> dict[str, Any]:  # fmt: skip
    """Returns the p values of the judged classes of a copy, the counted images of the class of the
    canary, and its attack success rate."""
    attacker = partial(context_of, options=options, machine=machine)
    planted = plant(found, canary, usable, options.seed, attacker)
    statistics, asr = _with_probes(planted.found, planted.probes, canary, options, store, machine)
    against = studentized(statistics.statistics, FLOOR)
    p = p_values(planted.found, against)
    column = judged(planted.found).index(canary.label)
    scores = statistics.scores[int(against[:, column].argmax())]
    number = counted(scores[planted.found.labeled.labels == canary.label])
    return {"p": list(p), "column": column, "counted": number, "asr": asr,
            "statistics": against.max(axis=0).tolist()}  # fmt: skip


def _with_probes(
    copy: ScanImages, probes: Tensor, canary: Canary, options: ScanOptions, store: Store,
    machine: ComputeDevice,
) -> tuple[SetStatistics, float | None]:  # fmt: skip
    training = copy.training_set()
    wanted = torch.full((len(probes),), canary.label)
    shown = together(copy.labeled, LabeledImages(probes, wanted, copy.classes))
    every, rates = [], []
    for number in range(options.networks):
        layers = network_stage(training, shown, number, options, store, machine)
        predicted = layers.values["logits"][len(copy) :].argmax(dim=1)
        rates += [float((predicted == canary.label).double().mean())] if len(probes) else []
        every.append(layers.first(len(copy)))
    found = statistics_of(copy, every, options, store, machine)
    return found, float(np.mean(rates)) if rates else None


def _outcome(canary: Canary, meta: dict[str, Any], alpha: float) -> Outcome:
    alarms = [p is not None and p <= alpha for p in meta["p"]]
    own, others = alarms.pop(meta["column"]), list(meta["statistics"])
    p, statistic = meta["p"][meta["column"]], others.pop(meta["column"])
    return Outcome(
        canary, own, 1.0 if p is None else p, meta["asr"], meta["counted"], sum(alarms), statistic,
        max(others, default=0.0),
    )  # fmt: skip
