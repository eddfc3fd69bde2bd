"""Makes records with made-up figures, and writes sweeps of such records."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from backdoor_lab.results.columns import COLUMNS
from backdoor_lab.results.seal import sealed

GRID = [
    (trigger, target, ratio)
    for trigger in ("pixel", "pattern")
    for target in ("bird", "dog", "horse")
    for ratio in (0.05, 0.1)
]

PROTOCOL = {
    "name": "group13", "ratio_of": "target", "placement": "append", "poison_from": "not_target",
    "asr_on": "not_target", "apply_trigger": "before_augmentation", "filter_scope": "target",
    "removal_budget": "1.5eps", "center": True,
}  # fmt: skip


def record(
    trigger: str = "pixel", target: str = "bird", ratio: float = 0.05,
    defense: str = "spectral", seed: int = 0, **over: Any,
) -> dict[str, Any]:  # fmt: skip
    """Make the content of a record.json with made-up figures, which depend only on the choices."""
    draw = random.Random(ascii((trigger, target, ratio, defense, seed)))
    poisoned = round(1000 * ratio)
    made: dict[str, Any] = {
        "schema": 1, "id": f"{trigger}-{target}-r{ratio:g}-{defense}-s{seed}-0a1b2c3d4e",
        "status": "done", "error": None,
        "choices": {
            "dataset": "synthetic", "model": "resnet18-w16", "recipe": "demo", "trigger": trigger,
            "target": target, "source": None, "ratio": ratio, "protocol": "group13",
            "defense": defense, "seed": seed,
        },
        "protocol": dict(PROTOCOL), "config": {"recipe": {"lr": 0.1}, "seed": seed},
        "counts": {
            "n_train": 10000 + poisoned, "n_poisoned": poisoned, "n_eligible": 9000,
            "n_removed": 75, "pois_left": draw.randrange(9), "n_test": 2000, "n_asr": 1800,
            "train_test_overlap": 0,
        },
        "nat1": round(0.9 + draw.random() / 20, 4), "asr1": round(0.8 + draw.random() / 5, 4),
        "nat2": round(0.9 + draw.random() / 20, 4), "asr2": round(draw.random() / 20, 4),
        "detection": {"auroc": 0.99, "tpr": 0.94, "fpr": 0.003}, "poison_indices": [1, 2, 3],
        "run": {
            "seconds": {"train": 30.0, "retrain": 28.0},
            "stages": {"train": {"id": "t", "made": True}, "retrain": {"id": "r", "made": True}},
            "versions": {"backdoor_lab": "0.1.0", "torch": "2.10.0"}, "device": "cpu: 1 thread",
        },
    }  # fmt: skip
    made["choices"].update(over.pop("choices", {}))
    made.update(over)
    return made


def failed(made: dict[str, Any], status: str = "failed: oom") -> dict[str, Any]:
    """Make the record of the same cell with a status of failure and without figures."""
    nothing = dict.fromkeys(("nat1", "asr1", "nat2", "asr2", "detection"))
    return {**made, "status": status, "counts": {}, **nothing}


def write_sweep(
    folder: Path, made: list[dict[str, Any]], asked: list[dict[str, Any]] | None = None
) -> Path:
    """Write records to a folder. `asked` are the cells listed in its sweep.json, by default those
    of the records. If it is empty, no such file is written."""
    for one in made:
        (folder / one["id"]).mkdir(parents=True, exist_ok=True)
        (folder / one["id"] / "record.json").write_text(sealed(json.dumps(one)))
    listed = [{"id": m["id"], "choices": m["choices"]} for m in (made if asked is None else asked)]
    if listed:
        folder.mkdir(exist_ok=True)
        content = {"schema": 1, "name": "demo", "command": "x", "asked": listed}
        (folder / "sweep.json").write_text(json.dumps(content))
    return folder


def documented(name: str) -> bool:
    return name in COLUMNS or any(
        name.startswith(each[:-1]) and name != each[:-1] for each in COLUMNS if each.endswith("*")
    )


def per_class(**over: Any) -> dict[str, Any]:
    """Make the entry ``per_class`` of a record, for three classes."""
    return {
        "classes": ["cat", "bird", "dog"], "n_test": [4, 2, 2],
        "nat1": [0.5, 1.0, 0.5], "nat2": [0.75, 0.5, 1.0],
        "confusion1": [[2, 2, 0], [0, 2, 0], [1, 0, 1]],
        "confusion2": [[3, 0, 1], [1, 1, 0], [0, 0, 2]],
    } | over  # fmt: skip


def everything(**over: Any) -> dict[str, Any]:
    """Make a record that has every possible field."""
    made = record(**over)
    made["counts"] |= {"n_clean": 10000, "n_covers": 4, "covers_left": 2}
    made["detection"] |= {"average_precision": 0.9, "tpr_at_1": 0.5, "tpr_at_5": 0.75}
    made |= {"asr_elsewhere1": 0.25, "asr_elsewhere2": 0.125}
    made |= {"clean_rate1": 0.1, "clean_rate2": 0.2, "top_share1": 0.3, "top_share2": 0.4}
    made |= {"top_class1": "cat", "top_class2": "dog", "applied": {"filter_scope": "target"}}
    made["under"] = {"jpeg75": {"nat1": 0.5, "asr1": 0.25, "nat2": 0.625, "asr2": 0.75}}
    made["per_class"] = per_class()
    made["notes"] = {"classes": [2]}
    made["hashes"] = {"data": "d", "test": "t", "poison": "p", "training1": "1", "training2": "2",
                      "weights1": "w", "weights2": "v"}  # fmt: skip
    made["run"] |= {
        "images_per_s": {"train": 100.0, "retrain": 90.0}, "process_peak_memory_mib": 900.5,
        "wall_seconds": 61.5, "started": "2026-11-22T00:00:00+00:00", "git_commit": "abc",
        "command": "python -m backdoor_lab", "compute": {"device": "cpu", "threads": 1},
    }  # fmt: skip
    return made
