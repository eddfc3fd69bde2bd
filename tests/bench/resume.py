"""A sweep of a thousand finished cells: how long the same command takes to find that out."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.bench.measuring import TINY, Figure, command, exponent, timed

SIZES = (10, 400, 1000)


def run() -> list[Figure]:
    """Seconds of the repeated command for growing numbers of finished cells."""
    found = [_measure(cells) for cells in SIZES]
    figures = [Figure(f"{cells} finished cells", seconds, "s", "<= 20" if cells == 1000 else "")
               for cells, seconds in zip(SIZES, found, strict=True)]  # fmt: skip
    beyond = [seconds - found[0] for seconds in found[1:]]
    growth = exponent(SIZES[1:], beyond)
    return [*figures, Figure("exponent of what the cells cost", growth, "", "<= 1.1")]


def _measure(cells: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        finished(Path(folder), cells)
        runs = [timed(_command(cells), Path(folder)) for _ in range(2)]
    assert all(f"{cells} of {cells} cells are done already" in out for _, out in runs), runs
    return min(seconds for seconds, _ in runs)


def _command(cells: int) -> list[str]:
    seeds = ",".join(map(str, range(cells)))
    return [*command("backdoor_lab"), "-m", *TINY, f"seed={seeds}"]


def finished(folder: Path, cells: int) -> list[dict[str, Any]]:
    """Makes a sweep of so many finished cells in `folder`; returns their records.

    The sweep is listed by a run that stops before its first cell; each is then given a record.
    """
    code = (
        "import sys; sys.argv = ['x'] + sys.argv[1:];"
        "import backdoor_lab.run as run; from backdoor_lab.sweep.sweeper import ResumeSweeper;"
        "ResumeSweeper._launch = lambda *_: None; run.main()"
    )
    folder.mkdir(parents=True, exist_ok=True)
    timed([sys.executable, "-c", code, *_command(cells)[3:]], folder, check=False)
    (sweep,) = (path.parent for path in folder.glob("multirun_reports/*/sweep.json"))
    asked = json.loads((sweep / "sweep.json").read_text())["asked"]
    found = [_record(each) for each in asked]
    for record in found:
        (sweep / record["id"]).mkdir()
        (sweep / record["id"] / "record.json").write_text(json.dumps(record))
    return found


def _record(asked: dict[str, Any]) -> dict[str, Any]:
    counts = {"n_train": 206, "n_poisoned": 6, "n_removed": 9, "pois_left": 1}
    figures = {"nat1": 0.9, "asr1": 0.9, "nat2": 0.9, "asr2": 0.1}
    return {
        "schema": 1, "id": asked["id"], "status": "done", "error": None,
        "choices": asked["choices"], "protocol": {"name": "group13"}, "config": {},
        "counts": counts, **figures, "detection": None, "poison_indices": list(range(6)),
        "hashes": {}, "run": {},
    }  # fmt: skip
