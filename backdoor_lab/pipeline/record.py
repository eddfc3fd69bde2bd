"""Creates the record of a cell. Tables are made from records only."""

from __future__ import annotations

import functools
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from backdoor_lab.attacks.plan import eligible_count
from backdoor_lab.core.atomic_io import digest
from backdoor_lab.core.lazy import torch
from backdoor_lab.core.store import Artifact
from backdoor_lab.core.types import Dataset, FilterResult, PoisonResult
from backdoor_lab.defenses import curves
from backdoor_lab.defenses.base import OracleControl
from backdoor_lab.pipeline.cell import Cell
from backdoor_lab.pipeline.per_class import recorded_per_class
from backdoor_lab.pipeline.stages.training import versions
from backdoor_lab.training.device import ComputeDevice

SCHEMA = 1
PLACES = ("root", "download")
KEPT = ("machine", "compute", "versions")
WORTH = ("clean_rate", "top_class", "top_share")
"""The metrics of `measure_stage` that help to interpret clean accuracy and attack success rate."""
FITTED = ("train_accuracy1", "train_accuracy2")
UNSET = ("skip_broken", "test_share", "split_seed")


def record_head(cell: Cell) -> dict[str, Any]:
    """The entries of a record that are known before any computation; metrics are None."""
    return {
        "schema": SCHEMA,
        "id": cell.id,
        "error": None,
        "choices": cell.choices,
        "protocol": cell.protocol,
        # The filter options from the protocol that this defense uses.
        "applied": {} if isinstance(cell.defense, OracleControl) else cell.defense.applied(),
        "config": cell.decides(),
        # The data set in readable form, without file paths; config.data identifies it by a hash.
        "dataset": described(cell),
        "counts": {},
        "nat1": None, "asr1": None, "nat2": None, "asr2": None,
        "asr_elsewhere1": None, "asr_elsewhere2": None,
        **{f"{name}{when}": None for when in (1, 2) for name in WORTH},
        **dict.fromkeys(FITTED),
        "per_class": None,
        "detection": None,
        "notes": {},
        "hashes": {},
        "poison_indices": [],
    }  # fmt: skip


def described(cell: Cell) -> dict[str, Any]:
    """Returns the data set's options without paths. The options listed in `UNSET` are omitted if
    they are null, false or 0."""
    options = cell.config["dataset"]
    return {k: v for k, v in options.items() if k not in PLACES and (k not in UNSET or v)}


def any_file(note: object) -> bool:
    """Whether `note`, one of the data set's notes, is a dict with a nonempty list ``files``."""
    return isinstance(note, dict) and bool(note.get("files"))


def record_body(
    cell: Cell, data: Dataset, poisoned: PoisonResult, filter_result: FilterResult,
    stages: dict[str, Artifact], overlap: int,
) -> dict[str, Any]:  # fmt: skip
    """The entries of a finished cell's record, computed from the outputs of its stages."""
    before = stages["measure1"].meta
    # Without a second network there are no metrics after the defense.
    after = stages["measure2"].meta if "measure2" in stages else dict.fromkeys(before)
    again = next((stages[name].meta for name in ("retrain", "repair") if name in stages), {})
    judged = "filter" in stages
    return {
        "status": "done",
        "dataset": described(cell) | {k: v for k, v in data.notes.items() if any_file(v)},
        "counts": {
            "n_train": len(poisoned.training),
            "n_removed": int((~filter_result.keep).sum()),
            "n_test": before["n_test"],
            "n_asr": before["n_asr"],
            "train_test_overlap": overlap,
            **poison_counts(cell, data, poisoned, filter_result),
        },
        "nat1": before["nat"], "asr1": before["asr"],
        "nat2": after["nat"], "asr2": after["asr"],
        "asr_elsewhere1": before["asr_elsewhere"], "asr_elsewhere2": after["asr_elsewhere"],
        **{f"{name}1": before[name] for name in WORTH},
        **{f"{name}2": after[name] for name in WORTH},
        # A repair does not train on a second training set, so it has no second training accuracy.
        **{name: stages[name].meta["accuracy"] if name in stages else None for name in FITTED},
        "per_class": recorded_per_class(data.classes, before, after),
        # A repair scores no images.
        "detection": detection(*_without_covers(filter_result, poisoned))
        if judged and poisoned.known else None,
        **under(cell, stages),
        "notes": filter_result.notes if judged else again["notes"],
        "poison_indices": poisoned.source_index.tolist() if poisoned.known else None,
        "hashes": {
            "data": data.train.digest,
            "test": data.test.digest,
            "poison": digest(poisoned.source_index.tolist()) if poisoned.known else None,
            "training1": poisoned.training.digest,
            "training2": again.get("training"),
            "weights1": stages["attacked" if "attacked" in stages else "train"].meta["weights"],
            "weights2": again.get("weights"),
        },
    }  # fmt: skip


def poison_counts(
    cell: Cell, data: Dataset, poisoned: PoisonResult, filter_result: FilterResult
) -> dict[str, Any]:
    """The counts of a record that depend on the ground truth; None if it is unknown."""
    keep = filter_result.keep
    sizes = torch.bincount(data.train.labels, minlength=len(data.classes)).tolist()
    imported = data.attack is not None
    found: dict[str, Any] = {
        "n_clean": len(data.train) - (appended_count(poisoned) if imported else 0),
        "n_poisoned": len(poisoned.source_index),
        # How many images could have been poisoned is not known of a set that was read poisoned.
        "n_eligible": None if imported else eligible_count(cell.plan, sizes),
        "pois_left": int((poisoned.is_poison & keep).sum()),
        "n_covers": len(poisoned.cover_index),
        "covers_left": int((poisoned.is_cover & keep).sum()),
    }
    if not poisoned.known:
        return dict.fromkeys(found)
    return found | flagged_counts(cell, poisoned, filter_result)


def appended_count(poisoned: PoisonResult) -> int:
    """How many of an imported set's poisoned images and covers were appended: the clean image that
    such an image was made from is another one of the set."""
    training = poisoned.training
    at = (training.index >= len(training.base)).nonzero().flatten()
    original = torch.cat([poisoned.source_index, poisoned.cover_index])
    return int((original[training.index[at] - len(training.base)] != at).sum())


def under(cell: Cell, stages: dict[str, Artifact]) -> dict[str, Any]:
    """Maps the name of each transformation to the metrics of both networks on transformed images.
    Empty if the cell has no transformations; `nat2` and `asr2` are None without a second
    network."""
    if not cell.asr_under:
        return {}
    found: dict[str, dict[str, Any]] = {}
    for name in cell.asr_under:
        found[name] = {}
        for when in (1, 2):
            entry = stages.get(f"transformed{when}")
            said = {} if entry is None else entry.meta["under"][name]
            found[name] |= {f"{what}{when}": said.get(what) for what in ("nat", "asr")}
    return {"under": found}


def flagged_counts(
    cell: Cell, poisoned: PoisonResult, filter_result: FilterResult
) -> dict[str, int]:
    """Returns how many classes a filter flagged (`n_accused`), and how many of these contain poison
    (`n_named`); an empty dict unless the filter itself chose the suspicious classes."""
    named: Any = filter_result.notes.get("classes")
    if cell.options.get("filter_scope") != "suspicious" or named is None:
        return {}
    training = poisoned.training
    guilty = {training.classes[y] for y in training.labels[poisoned.is_poison].tolist()}
    found = set(named)
    return {"n_accused": len(found), "n_named": len(found & guilty)}


def _without_covers(
    filter_result: FilterResult, poisoned: PoisonResult
) -> tuple[FilterResult, torch.Tensor]:
    # Cover images carry the trigger but the correct label: removing one counts neither as a hit nor
    # as a false alarm.
    plain = ~poisoned.is_cover
    return FilterResult(filter_result.scores[plain], filter_result.keep[plain]), poisoned.is_poison[
        plain
    ]


def detection(filter_result: FilterResult, is_poison: torch.Tensor) -> dict[str, Any] | None:
    """How well the scores, and the removal, separate poison from clean examples.

    `auroc`, `average_precision`, and the true positive rates `tpr_at_1` and `tpr_at_5`, at false
    positive rates of 1 % and 5 %, are computed over the scored examples; they are None if these are
    all poison or all clean. `tpr` is the removed share of all poison, `fpr` the removed share of
    all clean examples. `curve` has two lists: ``removed``, numbers of examples removed from the
    highest score down, and ``left``, the numbers of poisoned examples that are then left. Returns
    None if there is no poison.
    """
    removed = ~filter_result.keep
    n_poison, n_clean = int(is_poison.sum()), int((~is_poison).sum())
    if not n_poison:
        return None
    seen = ~torch.isnan(filter_result.scores)
    scores, positive = filter_result.scores[seen], is_poison[seen]
    both = bool(positive.any()) and not bool(positive.all())
    points = curves.poison_left(filter_result.scores, is_poison)
    return {
        "auroc": curves.auroc(scores, positive) if both else None,
        "average_precision": curves.average_precision(scores, positive) if both else None,
        "tpr_at_1": curves.tpr_at_fpr(scores, positive, 0.01) if both else None,
        "tpr_at_5": curves.tpr_at_fpr(scores, positive, 0.05) if both else None,
        "tpr": int((removed & is_poison).sum()) / n_poison,
        "fpr": int((removed & ~is_poison).sum()) / n_clean if n_clean else None,
        "curve": {"removed": [n for n, _ in points], "left": [left for _, left in points]},
    }


def run_facts(stages: dict[str, Artifact], machine: ComputeDevice, command: str) -> dict[str, Any]:
    """The entries of a record that may differ between two correct runs of the same cell."""
    seconds = {name: round(_seconds(entry), 3) for name, entry in stages.items()}
    rates = {name: _rate(stages[name]) for name in ("train", "retrain") if name in stages}
    return {
        "seconds": seconds,
        "images_per_s": rates,
        "process_peak_memory_mib": round(_peak_mib(), 1),
        "stages": {name: _stage_facts(entry) for name, entry in stages.items()},
        "versions": versions(),
        "device": machine.describe(),
        "compute": machine.facts(),
        "git_commit": git_commit(),
        "command": command,
    }


@functools.cache
def git_commit() -> str | None:
    """The commit of the checkout that contains this code, as `commit_of` returns it; None if the
    package is not in a checkout."""
    return commit_of(Path(__file__).resolve().parents[2])


def commit_of(checkout: Path) -> str | None:
    """The commit of a Git checkout: 12 hex digits, and ``-dirty`` if the package or `conf` has
    uncommitted changes or untracked files. None if there is no checkout, no commit or no git."""
    if not (checkout / ".git").exists():
        return None
    git = ["git", "-C", str(checkout)]
    status = ["status", "--porcelain", "--", "backdoor_lab", "conf"]
    try:
        head, changes = (
            subprocess.run(
                [*git, *arguments], capture_output=True, text=True, timeout=10, check=False
            )
            for arguments in (["rev-parse", "--short=12", "HEAD"], status)
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if head.returncode or changes.returncode:
        return None
    return head.stdout.strip() + ("-dirty" if changes.stdout.strip() else "")


def _stage_facts(entry: Artifact) -> dict[str, Any]:
    """A stage's id, and whether this run computed it. If known, also the machine and the library
    versions used."""
    facts = {"id": entry.id, "made": entry.made}
    return facts | {key: entry.meta[key] for key in KEPT if key in entry.meta}


def _seconds(entry: Artifact) -> float:
    """Returns the seconds that a stage took. For resumed training, includes the epochs before the
    interruption."""
    return entry.seconds + float(entry.meta.get("seconds_before", 0.0))


def _rate(entry: Artifact) -> float | None:
    # Count only the epochs since the last resume: `entry.seconds` covers only these.
    epochs = len(entry.meta["loss"]) - entry.meta["resumed_after"]
    return round(epochs * entry.meta["n_train"] / max(entry.seconds, 1e-9), 1)


def _peak_mib() -> float:
    """The peak memory of this process in MiB: on the GPU if it used one, otherwise in RAM. Earlier
    cells of the same process count too."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
