"""Reads the data that figures show, from records and the store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from backdoor_lab.analysis.cell_artifacts import CellArtifacts, in_target
from backdoor_lab.analysis.evidence import (
    projections,
    sampled,
)
from backdoor_lab.core.errors import many
from backdoor_lab.core.validation import LONGEST, non_negative
from backdoor_lab.page.page_pictures import is_triggered_late
from backdoor_lab.results.artifact_reader import ArtifactReader
from backdoor_lab.results.records import CellRecord
from backdoor_lab.results.stages import STAGES, attacked_stage
from backdoor_lab.results.stored_results import Training
from backdoor_lab.tables.markup import short

if TYPE_CHECKING:
    from backdoor_lab.figures.images import Layer

Array = NDArray[Any]
Record = dict[str, Any]
PAIRS, BASE, MOST_BARS = 32, 1000, 40


@dataclass(frozen=True)
class SweepData:
    """The cells of a sweep, its records by cell id, and a reader of its store."""

    cells: Sequence[CellRecord]
    records: dict[str, Record]
    reader: ArtifactReader

    def done(self) -> Iterator[tuple[CellRecord, Record]]:
        """Yield each completed cell with its record. Skips cells without a readable record."""
        for cell in self.cells:
            if cell.done and cell.choices and cell.id in self.records:
                yield cell, self.records[cell.id]


def projected(reader: ArtifactReader, record: Record, found: CellArtifacts) -> Array | None:
    """Project the target class onto its top two singular directions: float64 (b, 2). None if the
    features are not stored or not finite."""
    where = in_target(found)
    values = reader.features(record, where, len(found.training.index))
    if values is None or len(values) < 2 or not np.isfinite(values).all():
        return None
    return projections(values)


def losses_of(reader: ArtifactReader, record: Record) -> dict[str, Array]:
    """The stored losses per epoch, of the first training and of the retraining."""
    named = {"first training": "train", "retraining": "retrain"}
    found = {name: reader.losses(record, stage) for name, stage in named.items()}
    return {name: values for name, values in found.items() if values is not None and len(values)}


def steps(record: Record) -> list[tuple[str, list[str]]]:
    """The stages of a completed cell, each with lines of text about its result, for `run.pipeline`.

    A repair takes the place of filtering and retraining. Without a second network, the filter is
    the last stage.
    """
    known, chosen = _part(record, "counts"), _part(record, "choices")
    counts = {name: value for name, value in known.items() if value is not None}
    epochs = _part(record, "config", "recipe").get("epochs", "?")

    def figure(name: str) -> str:
        value = record.get(name)
        return f"{100 * value:.2f} %" if isinstance(value, (int, float)) else "–"

    every = _part(record, "protocol").get("label_mode") == "all_to_all"
    target = "the next class" if every else chosen.get("target")
    after = [f"Nat {figure('nat2')}", f"ASR {figure('asr2')}"]
    left = f"{counts.get('pois_left', '?')} of {counts.get('n_poisoned', '?')} poison left"
    auroc = _part(record, "detection").get("auroc")
    stages = [
        ("load", [str(chosen.get("dataset")), many(counts.get("n_clean", "?"), "image")]),
        ("poison", [f"{chosen.get('trigger')} → {target}",
                    f"{counts.get('n_poisoned', '?')} poisoned",
                    f"{counts.get('n_train', '?')} in all"]),
        ("train", [str(chosen.get("model")), many(epochs, "epoch"),
                   f"Nat {figure('nat1')}", f"ASR {figure('asr1')}"]),
        ("extract", [f"{_part(record, 'protocol').get('layer', '?')}", "features",
                     f"of {many(counts.get('n_train', '?'), 'image')}"]),
        ("filter", [str(chosen.get("defense")), f"{counts.get('n_removed', '?')} removed", left,
                    f"AUROC {auroc:.3f}" if isinstance(auroc, float) else ""]),
        ("retrain", ["from scratch", *after]),
    ]  # fmt: skip
    if "repair" in _part(record, "run", "stages"):
        stages[-2:] = [("repair", [str(chosen.get("defense")), *after])]
    elif record.get("nat2") is None:
        stages.pop()
    return [(stage, [short(line) for line in lines]) for stage, lines in stages]


def _part(record: Record, *names: str) -> Record:
    """The mapping in `record` under the nested keys `names`. Empty if there is none: the record
    need not be valid."""
    for name in names:
        found = record.get(name)
        record = found if isinstance(found, dict) else {}
    return record


def costs(cells: Sequence[CellRecord]) -> tuple[list[str], list[str], Array]:
    """The seconds per stage of the most expensive cells, at most `MOST_BARS`, in the order of the
    sweep.

    Returns the names of the cells, the stages, and the seconds as float64 (cells, stages).
    """
    spent = [[_seconds(cell, stage) for stage in STAGES] for cell in cells]
    table = np.array(spent).reshape(len(cells), len(STAGES))
    dearest = np.sort(np.argsort(-table.sum(axis=1), kind="stable")[:MOST_BARS])
    used = np.flatnonzero(table[dearest].any(axis=0)) if len(dearest) else np.arange(0)
    names = [short(cells[n].id.rsplit("-", 1)[0]) for n in dearest]
    return names, [STAGES[n] for n in used], table[np.ix_(dearest, used)]


def _seconds(cell: CellRecord, stage: str) -> float:
    known = cell.run.get("seconds")
    value = known.get(stage) if isinstance(known, dict) else None
    return non_negative(value, high=LONGEST) or 0.0


def attacked(whole: SweepData) -> Iterator[tuple[str, Record, Training]]:
    """For each trigger, yield its name with the record and the training set of one completed cell:
    the one with the highest ratio among the cells whose poisoned images are stored."""
    by_trigger: dict[str, list[Record]] = {}
    for cell, record in sorted(whole.done(), key=lambda each: -float(each[0].choices["ratio"])):
        if float(cell.choices["ratio"]) > 0 and not is_triggered_late(record):
            by_trigger.setdefault(str(cell.choices["trigger"]), []).append(record)
    for name in dict.fromkeys(str(cell.choices["trigger"]) for cell, _ in whole.done()):
        stored = ((r, whole.reader.training(r)) for r in by_trigger.get(name, []))
        for record, training in stored:
            if training is not None and training.has_originals:
                yield name, record, training
                break


def trigger_rows(
    found: Sequence[tuple[str, Record, Training]],
) -> tuple[list[str], Array, Array]:
    """One example for each trigger: its name, an original and its triggered version.

    The images are uint8 (t, C, H, W). If there is an image that every trigger poisons, all rows
    show it; otherwise each shows the first image that its trigger poisons.
    """
    sources = [each.original[: each.poisoned].tolist() for _, _, each in found]
    common = set(sources[0]).intersection(*sources[1:])
    places = [s.index(min(common)) if common else 0 for s in sources]
    pairs = [pair(each, np.array([n])) for (*_, each), n in zip(found, places, strict=True)]
    originals, changed = (np.concatenate([p[part] for p in pairs]) for part in (0, 1))
    return [short(name) for name, *_ in found], originals, changed


def pair(training: Training, rows: Array) -> tuple[Array, Array]:
    """The originals and the triggered versions of the poisoned images with indices `rows`, int
    (b,): two arrays, uint8 (b, C, H, W)."""
    return np.asarray(training.base[training.original[rows]]), training.rows[rows]


def layers(whole: SweepData, trigger: str, record: Record, training: Training) -> list[Layer]:
    """The first layers of two networks: one trained without poison, if the sweep has one, and the
    backdoored network of `record`."""
    from backdoor_lab.figures.filters import response_changes
    from backdoor_lab.figures.images import Layer

    channels = training.base.shape[1]
    pairs = pair(training, sampled(np.arange(training.poisoned), PAIRS))
    base = np.asarray(training.base[sampled(np.arange(len(training.base)), BASE)])
    found: list[tuple[str, Array | None]] = []
    clean = trained_clean(whole, record)
    if clean is not None:
        name, other, stage = clean
        found.append(
            (short(f"clean ({name}), {trigger}"), whole.reader.first_layer(other, stage, channels))
        )
    mine = whole.reader.first_layer(record, attacked_stage(record), channels)
    found.append((short(f"backdoored by {trigger}"), mine))
    return [
        Layer(title, weights, response_changes(weights, *pairs, base))
        for title, weights in found
        if weights is not None
    ]


def trained_clean(whole: SweepData, like: Record) -> tuple[str, Record, str] | None:
    """Finds a network of this sweep that was trained without poison, with the same model and data
    set as the cell of the record `like`.

    The network is taken from a cell without poison, else from the retraining of the control
    `oracle`, else from any retraining that had no poison left. Returns a name for the network, and
    its record and stage.
    """
    ranked: dict[int, tuple[str, Record, str]] = {}
    for cell, record in whole.done():
        same = all(
            cell.choices.get(n) == _part(like, "choices").get(n) for n in ("dataset", "model")
        )
        covers = _part(record, "counts").get("covers_left") or 0
        again = "nat2" in cell.numbers
        tests: list[tuple[bool, str, str]] = [
            (cell.choices["ratio"] == 0 and not cell.given, "ratio 0", "train"),
            (again and cell.choices["defense"] == "oracle", "oracle's retraining", "retrain"),
            (again, f"{cell.choices['defense']}'s retraining", "retrain"),
        ]
        pure = same and cell.numbers.get("pois_left") == 0 and not covers
        for rank, (fits, name, stage) in enumerate(tests):
            if pure and fits and rank not in ranked:
                ranked[rank] = name, record, stage
    return ranked[min(ranked)] if ranked else None
