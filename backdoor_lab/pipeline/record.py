"""The record of a cell: the only file that tables are made from."""

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
from backdoor_lab.pipeline.stages.training import versions
from backdoor_lab.training.device import ComputeDevice

SCHEMA = 1
PLACES = ("root", "download")
KEPT = ("machine", "compute", "versions")
WORTH = ("clean_rate", "top_class", "top_share")
"""The metrics of `measure_stage` that show how meaningful Nat and ASR are."""
FITTED = ("train_accuracy1", "train_accuracy2")
UNSET = ("skip_broken", "test_share", "split_seed")


def record_head(cell: Cell) -> dict[str, Any]:
    """The part of a record that is known before any computation."""
    return {
        "schema": SCHEMA,
        "id": cell.id,
        "error": None,
        "choices": cell.choices,
        "protocol": cell.protocol,
        # The protocol's filter options that this defense uses.
        "applied": {} if isinstance(cell.defense, OracleControl) else cell.defense.applied(),
        "config": cell.decides(),
        # A readable form of the data that config.data identifies by hash; without file paths.
        "dataset": described(cell),
        "counts": {},
        "nat1": None, "asr1": None, "nat2": None, "asr2": None,
        "asr_elsewhere1": None, "asr_elsewhere2": None,
        **{f"{name}{when}": None for when in (1, 2) for name in WORTH},
        **dict.fromkeys(FITTED),
        "detection": None,
        "notes": {},
        "hashes": {},
        "poison_indices": [],
    }  # fmt: skip


def described(cell: Cell) -> dict[str, Any]:
    """The data set's options, without paths and without newer options that have their default
    value."""
    options = cell.config["dataset"]
    return {k: v for k, v in options.items() if k not in PLACES and (k not in UNSET or v)}


def any_file(note: object) -> bool:
    """Whether a note of the data set names any file."""
    return isinstance(note, dict) and bool(note.get("files"))


def record_body(
    cell: Cell, data: Dataset, poisoned: PoisonResult, filter_result: FilterResult,
    stages: dict[str, Artifact], overlap: int,
) -> dict[str, Any]:  # fmt: skip
    """The metrics of a finished cell, from the outputs of its stages."""
    before = stages["measure1"].meta
    # Without a retrained network, there are no metrics after the defense.
    after = stages["measure2"].meta if "measure2" in stages else dict.fromkeys(before)
    again = next((stages[name].meta for name in ("retrain", "repair") if name in stages), {})
    judged = "filter" in stages
    removed = ~filter_result.keep
    sizes = torch.bincount(data.train.labels, minlength=len(data.classes)).tolist()
    return {
        "status": "done",
        "dataset": described(cell) | {k: v for k, v in data.notes.items() if any_file(v)},
        "counts": {
            "n_train": len(poisoned.training),
            "n_clean": len(data.train),
            "n_poisoned": len(poisoned.source_index),
            "n_eligible": eligible_count(cell.plan, sizes),
            "n_removed": int(removed.sum()),
            "pois_left": int((poisoned.is_poison & filter_result.keep).sum()),
            "n_covers": len(poisoned.cover_index),
            "covers_left": int((poisoned.is_cover & filter_result.keep).sum()),
            "n_test": before["n_test"],
            "n_asr": before["n_asr"],
            "train_test_overlap": overlap,
            **flagged_counts(cell, poisoned, filter_result),
        },
        "nat1": before["nat"], "asr1": before["asr"],
        "nat2": after["nat"], "asr2": after["asr"],
        "asr_elsewhere1": before["asr_elsewhere"], "asr_elsewhere2": after["asr_elsewhere"],
        **{f"{name}1": before[name] for name in WORTH},
        **{f"{name}2": after[name] for name in WORTH},
        # A repair has no second training, hence no second training accuracy.
        **{name: stages[name].meta["accuracy"] if name in stages else None for name in FITTED},
        # A repair scores no images.
        "detection": detection(*_without_covers(filter_result, poisoned)) if judged else None,
        **under(cell, stages),
        "notes": filter_result.notes if judged else again["notes"],
        "poison_indices": poisoned.source_index.tolist(),
        "hashes": {
            "data": data.train.digest,
            "test": data.test.digest,
            "poison": digest(poisoned.source_index.tolist()),
            "training1": poisoned.training.digest,
            "training2": again.get("training"),
            "weights1": stages["train"].meta["weights"],
            "weights2": again.get("weights"),
        },
    }  # fmt: skip


def under(cell: Cell, stages: dict[str, Artifact]) -> dict[str, Any]:
    """The metrics under each transformation, by name; empty if there are none. `nat2` and `asr2`
    are None without a second network."""
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
    """For a filter that chooses classes itself: how many classes it flagged (`n_accused`), and how
    many of them contain poison (`n_named`). Empty if the classes were given, and for controls and
    repairs, which examine no class."""
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
    # Covers are triggered but correctly labeled: removing one is neither a hit nor a false alarm.
    plain = ~poisoned.is_cover
    return FilterResult(filter_result.scores[plain], filter_result.keep[plain]), poisoned.is_poison[
        plain
    ]


def detection(filter_result: FilterResult, is_poison: torch.Tensor) -> dict[str, Any] | None:
    """How well scores and removal separate poison from clean examples; None without poison.

    Over the scored examples (None if all are poison or all clean): `auroc`, `average_precision`,
    and `tpr_at_1` and `tpr_at_5`, the share of poison above the threshold that 1 % or 5 % of the
    clean examples exceed. `tpr` and `fpr`: the removed shares of all poison and of all clean
    examples. `curve`: the poison `left` after removing the `removed` highest scores.
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
    """Facts that may differ between two valid runs of the same cell."""
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
    """The commit of the checkout that contains this code, as `commit_of`; None outside of one."""
    return commit_of(Path(__file__).resolve().parents[2])


def commit_of(checkout: Path) -> str | None:
    """The commit of a checkout, 12 digits, followed by ``-dirty`` if code or configuration differs
    from it (untracked files count, records of sweeps do not). None without a checkout, a commit or
    git."""
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
    """Whether this run computed a stage, and on which machine, if known."""
    facts = {"id": entry.id, "made": entry.made}
    return facts | {key: entry.meta[key] for key in KEPT if key in entry.meta}


def _seconds(entry: Artifact) -> float:
    """Seconds that a stage took; for a resumed training, including its earlier epochs."""
    return entry.seconds + float(entry.meta.get("seconds_before", 0.0))


def _rate(entry: Artifact) -> float | None:
    # Epochs since the last resume, divided by the seconds since then.
    epochs = len(entry.meta["loss"]) - entry.meta["resumed_after"]
    return round(epochs * entry.meta["n_train"] / max(entry.seconds, 1e-9), 1)


def _peak_mib() -> float:
    """Peak memory of this process in MiB; shared by all cells that ran in the same process."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
