"""Benchmarks a sweep of a thousand completed cells: how long does the same command take to find
that nothing is left to do?"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

from backdoor_lab.core.atomic_io import readable
from backdoor_lab.results.seal import sealed
from tests.bench.measuring import TINY, Figure, command, exponent, timed

SIZES = (10, 1000, 3000)
ROUNDS = 3


def run() -> list[Figure]:
    """Measure the seconds of the repeated command for growing numbers of completed cells.

    The exponent is computed from CPU seconds, after those of the smallest sweep are subtracted:
    wall times mostly reflect the disk and other processes.
    """
    rounds: dict[int, list[tuple[float, float]]] = {cells: [] for cells in SIZES}
    with tempfile.TemporaryDirectory() as folder:
        for cells in SIZES:
            finished(Path(folder) / str(cells), cells)
        for _ in range(ROUNDS):
            for cells, runs in rounds.items():
                runs.append(_repeated(Path(folder) / str(cells), cells))
    wall, busy = ([min(run[which] for run in rounds[cells]) for cells in SIZES] for which in (0, 1))
    figures = [Figure(f"{cells} finished cells", seconds, "s", "<= 20" if cells == 1000 else "")
               for cells, seconds in zip(SIZES, wall, strict=True)]  # fmt: skip
    growth = exponent(SIZES[1:], [seconds - busy[0] for seconds in busy[1:]])
    return [*figures, Figure("exponent of what the cells cost", growth, "", "<= 1.1")]


def _repeated(folder: Path, cells: int) -> tuple[float, float]:
    """Repeat the command of a sweep. Returns its wall-clock and CPU seconds."""
    before = _children()
    seconds, said = timed(_command(cells), folder)
    assert f"{cells} of {cells} cells already done" in said, said
    return seconds, _children() - before


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _command(cells: int) -> list[str]:
    seeds = ",".join(map(str, range(cells)))
    return [*command("backdoor_lab"), "-m", *TINY, f"seed={seeds}"]


def finished(folder: Path, cells: int, *more: str) -> list[dict[str, Any]]:
    """Make a sweep of `cells` completed cells with different seeds in `folder`, and return their
    records. `more` are overrides. The sweep is stopped when it has listed its cells, before the
    first one runs. Then a record is written for each cell."""
    code = (
        "import sys; sys.argv = ['x'] + sys.argv[1:];"
        "import backdoor_lab.run as run; from backdoor_lab.sweep.sweeper import ResumeSweeper;"
        "ResumeSweeper._launch = lambda *_: None; run.main()"
    )
    folder.mkdir(parents=True, exist_ok=True)
    timed([sys.executable, "-c", code, *_command(cells)[3:], *more], folder, check=False)
    (sweep,) = (path.parent for path in folder.glob("multirun_reports/runs/*/sweep.json"))
    asked = json.loads((sweep / "sweep.json").read_text())["asked"]
    found = [_record(each) for each in asked]
    for record in found:
        (sweep / record["id"]).mkdir()
        (sweep / record["id"] / "record.json").write_text(sealed(readable(record)))
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
