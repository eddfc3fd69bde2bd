"""A sweep of a thousand finished cells: how long the same command takes to find that out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
TINY = (
    "dataset=synthetic", "dataset.size=8", "dataset.per_class_train=20",
    "dataset.per_class_test=5", "model.width=4", "recipe=demo", "ratio=0.3", "trainer=cpu",
    "logger=none",
)  # fmt: skip


def run() -> list[dict[str, Any]]:
    """Seconds of the repeated command for growing numbers of finished cells."""
    return [_measure(cells) for cells in (10, 100, 1000)]


def _measure(cells: int) -> dict[str, Any]:
    grid = f"seed={','.join(map(str, range(cells // 2)))}"
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "backdoor_lab", "-m", *TINY, "target=bird,dog", grid]
        _finish(Path(folder), command)
        began = time.perf_counter()
        done = subprocess.run(command, cwd=folder, env=_environment(), capture_output=True,
                              text=True, check=True)  # fmt: skip
        seconds = time.perf_counter() - began
        assert f"{cells} of {cells} cells are done already" in done.stdout, done.stdout[-500:]
    return {"finished cells": cells, "seconds": round(seconds, 1), "target": "seconds, not minutes"}


def _finish(folder: Path, command: list[str]) -> None:
    """Lists the sweep's cells with a run that is stopped, then gives each a finished record."""
    code = (
        "import sys; sys.argv = ['x'] + sys.argv[1:];"
        "import backdoor_lab.run as run; from backdoor_lab.sweep.sweeper import ResumeSweeper;"
        "ResumeSweeper._launch = lambda *_: None; run.main()"
    )
    listing = [sys.executable, "-c", code, *command[3:]]
    subprocess.run(listing, cwd=folder, env=_environment(), capture_output=True, check=False)
    (sweep,) = (path.parent for path in folder.glob("multirun_reports/*/sweep.json"))
    for each in json.loads((sweep / "sweep.json").read_text())["asked"]:
        record = _record(each)
        (sweep / each["id"]).mkdir()
        (sweep / each["id"] / "record.json").write_text(json.dumps(record))


def _record(asked: dict[str, Any]) -> dict[str, Any]:
    counts = {"n_train": 206, "n_poisoned": 6, "n_removed": 9, "pois_left": 1}
    figures = {"nat1": 0.9, "asr1": 0.9, "nat2": 0.9, "asr2": 0.1}
    return {
        "schema": 1, "id": asked["id"], "status": "done", "error": None,
        "choices": asked["choices"], "protocol": {"name": "group13"}, "config": {},
        "counts": counts, **figures, "detection": None, "poison_indices": list(range(6)),
        "hashes": {}, "run": {},
    }  # fmt: skip


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
