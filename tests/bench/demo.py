"""Benchmarks the demo: twelve cells, from the command to the tables."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.bench import floor
from tests.bench.cells import parts, records
from tests.bench.measuring import Figure, command, timed


def run() -> list[Figure]:
    """Measure the wall time of `make demo` without the installation, in total and for each part."""
    with tempfile.TemporaryDirectory() as folder:
        start = datetime.now(UTC)
        wall, _ = timed([*command("backdoor_lab"), "-m", "experiment=demo"], Path(folder))
        found = records(Path(folder) / "multirun_reports" / "runs" / "demo")
    assert len(found) == 12
    stages = parts(found)
    cells = sum(each["run"]["wall_seconds"] for each in found)
    asr = min(each["asr1"] for each in found)
    return [
        Figure("12 cells to their tables", wall, "s", "<= 300"),
        Figure("until the first cell is done", min(_ended(r) for r in found) - start.timestamp(),
               "s", "<= 180"),
        Figure("of it training alone, two cells at a time", _training(found) / 2, "s",
               note=f"{2 * _images(found) / _training(found):.0f} images/s"),
        Figure("the same steps by PyTorch alone, two processes at once",
               _images(found) / floor.BATCH * floor.side_by_side(2) / 2, "s",
               note="one fixed batch, no data, no loop around it"),
        *(Figure(f"a cell's {name}", value, "s") for name, value in stages.items()),
        Figure("a cell beyond its stages", cells / 12 - sum(stages.values()), "s"),
        Figure("starting, checking and tables, with two cells at a time", wall - cells / 2, "s"),
        Figure("lowest ASR1", 100 * asr, "%"),
        Figure("lowest Nat2", 100 * min(each["nat2"] for each in found), "%"),
        Figure("highest ASR2", 100 * max(each["asr2"] for each in found), "%"),
    ]  # fmt: skip


def _ended(record: dict[str, Any]) -> float:
    run = record["run"]
    return datetime.fromisoformat(run["started"]).timestamp() + float(run["wall_seconds"])


def _training(found: list[dict[str, Any]]) -> float:
    """The total seconds of training in these records."""
    return sum(r["run"]["seconds"]["train"] + r["run"]["seconds"]["retrain"] for r in found)


def _images(found: list[dict[str, Any]]) -> int:
    """The number of images processed in all training runs. Each image counts once per epoch."""
    return sum(
        r["config"]["recipe"]["epochs"] * (2 * r["counts"]["n_train"] - r["counts"]["n_removed"])
        for r in found
    )
