"""Benchmarks two shortened cells of the demo: in one process with two threads, or in two processes
with one thread each."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from tests.bench.measuring import Figure, command, timed

SWEEP = (
    "-m", "experiment=demo", "target=bird", "ratio=0.1", "recipe.epochs=1", "logger=none",
    "dataset.per_class_train=400", "dataset.per_class_test=50",
)  # fmt: skip
ONE_OF_TWO = ("hydra/launcher=basic", "trainer.threads=2")
TWO_OF_ONE = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "trainer.threads=1")


def run() -> list[Figure]:
    """Measure the wall time of both cells, including start-up, and the training throughput."""
    one, two = _sweep(ONE_OF_TWO, threads=2), _sweep(TWO_OF_ONE, threads=1)
    return [
        Figure("2 cells, one process with 2 threads", one["wall"], "s"),
        Figure("2 cells, two processes with 1 thread", two["wall"], "s"),
        Figure("training alone, one process with 2 threads", one["rate"], "images/s"),
        Figure("training alone, two processes with 1 thread", two["rate"], "images/s"),
        Figure("two processes over one, training alone", two["rate"] / one["rate"], "x", ">= 1"),
        Figure("the rest of a cell (extract, filter, measure)", two["rest"], "% of its stages"),
    ]  # fmt: skip


def records(sweep: Path) -> list[dict[str, Any]]:
    """Read every record in the folder of a sweep."""
    return [json.loads(path.read_bytes()) for path in sorted(sweep.glob("*/record.json"))]


def _sweep(how: tuple[str, ...], threads: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        asked = [*command("backdoor_lab"), *SWEEP, *how]
        wall, _ = timed(asked, Path(folder), OMP_NUM_THREADS=str(threads))
        (sweep,) = (path.parent for path in Path(folder).glob("multirun_reports/runs/*/sweep.json"))
        found = records(sweep)
    assert [each["status"] for each in found] == ["done", "done"], found
    stages = [each["run"]["seconds"] for each in found]
    trained = sum(s["train"] + s["retrain"] for s in stages)
    images = sum(2 * e["counts"]["n_train"] - e["counts"]["n_removed"] for e in found)
    side_by_side = 2 if how == TWO_OF_ONE else 1
    rest = 100 * (1 - trained / sum(sum(s.values()) for s in stages))
    return {"wall": wall, "rate": side_by_side * images / trained, "rest": rest}


def parts(found: list[dict[str, Any]]) -> dict[str, float]:
    """The seconds of each stage, averaged over the records."""
    names = dict.fromkeys(name for each in found for name in each["run"]["seconds"])
    return {n: sum(each["run"]["seconds"].get(n, 0) for each in found) / len(found) for n in names}
