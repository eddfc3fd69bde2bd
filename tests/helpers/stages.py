"""Writes a sweep with made-up stage outputs, using only NumPy, from which figures can be drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from backdoor_lab.core.store import _seal
from tests.helpers.records import record, write_sweep

Array = NDArray[Any]
CLASSES = ("cat", "bird", "dog")
PER_CLASS, POISONED, REMOVED, SIDE = 40, 8, 12, 8
TARGET = CLASSES.index("bird")


class Made:
    """The arrays of one cell that a test expects to read back from the store."""

    def __init__(self, seed: int, *, covers: int = 0, replace: bool = False) -> None:
        draw = np.random.default_rng(seed)
        n = len(CLASSES) * PER_CLASS
        self.base = draw.integers(0, 200, (n, 3, SIDE, SIDE), dtype=np.uint8)
        self.clean_labels = np.repeat(np.arange(len(CLASSES)), PER_CLASS)
        others = np.flatnonzero(self.clean_labels != TARGET)
        chosen = draw.choice(others, POISONED + covers, replace=False)
        self.source, self.cover = np.sort(chosen[:POISONED]), np.sort(chosen[POISONED:])
        original = np.concatenate([self.source, self.cover])
        self.rows = self.base[original].copy()
        self.rows[:, :, -1, -1] = 255
        given = np.concatenate([np.full(POISONED, TARGET), self.clean_labels[self.cover]])
        where = n + np.arange(len(original))
        if replace:
            self.index, self.labels = np.arange(n), self.clean_labels.copy()
            self.index[original], self.labels[original] = where, given
        else:
            self.index = np.concatenate([np.arange(n), where])
            self.labels = np.concatenate([self.clean_labels, given])
        self.poison = np.isin(self.index, where[:POISONED])
        self.features = draw.normal(size=(len(self.index), 5)).astype(np.float32)
        self.features[self.poison, 0] += 4
        self.scores = np.full(len(self.index), np.nan)
        mine = np.flatnonzero(self.labels == TARGET)
        self.scores[mine] = draw.gamma(1.0, size=len(mine)) + 2.0 * self.poison[mine]
        self.keep = np.ones(len(self.index), bool)
        self.keep[mine[np.argsort(-self.scores[mine])[:REMOVED]]] = False
        self.losses = {"train": [2.0, 1.0, 0.5], "retrain": [1.5, 0.75, 0.375]}
        self.weights = {
            stage: draw.normal(size=(9, 3, 3, 3)).astype(np.float32) for stage in self.losses
        }


def put(store: Path, made: Made, name: str) -> dict[str, dict[str, Any]]:
    """Write the stages of a cell under `name`. Returns the ``run.stages`` of its record."""
    data = store / "data" / f"data-{name}"
    data.mkdir(parents=True)
    np.save(data / "train_images.npy", made.base)
    np.save(data / "train_labels.npy", made.clean_labels)
    np.save(data / "test_images.npy", made.base[::-1])
    np.save(data / "test_labels.npy", made.clean_labels[::-1])
    meta = {"classes": list(CLASSES), "digests": {"train": f"digest-{name}", "test": "t"}}
    _seal(data, "data", {}, meta, 0.0)
    tensors: dict[str, tuple[str, dict[str, Array]]] = {
        "poison": ("poison", {
            "rows": made.rows, "index": made.index, "labels": made.labels,
            "source_index": made.source, "cover_index": made.cover,
        }),
        "extract": ("features", {"values": made.features}),
        "filter": ("verdict", {"scores": made.scores, "keep": made.keep}),
        **{s: ("weights", {"conv1.weight": w}) for s, w in made.weights.items()},
    }  # fmt: skip
    for stage, (file, values) in tensors.items():
        folder = store / stage / name
        folder.mkdir(parents=True)
        save_file(values, folder / f"{file}.safetensors")
        loss = {"loss": made.losses[stage]} if stage in made.losses else {}
        _seal(folder, stage, {}, loss, 0.0)
    return {stage: {"id": name, "made": True} for stage in tensors}


def cell(store: Path, made: Made, name: str, **choices: Any) -> dict[str, Any]:
    """Make the record of a cell, and write its stages to `store`."""
    found = record(**choices)
    found["run"]["stages"] = put(store, made, name)
    found["run"]["command"] = "python -m backdoor_lab -m seed=0,1"
    found["hashes"] = {"data": f"digest-{name}", "weights1": name * 3}
    found["counts"] |= {
        "n_poisoned": POISONED, "n_removed": int((~made.keep).sum()),
        "pois_left": int((made.poison & made.keep).sum()),
        "n_train": len(made.index), "n_clean": len(made.base),
    }  # fmt: skip
    return found


def sweep(folder: Path, cells: int = 2, **choices: Any) -> tuple[Path, list[Made]]:
    """Write a sweep of `cells` completed cells with different seeds, next to its store."""
    made = [Made(seed) for seed in range(cells)]
    records = [
        cell(folder / ".store", each, f"cell{seed}", seed=seed, **choices)
        for seed, each in enumerate(made)
    ]
    return write_sweep(folder / "sweep", records), made
