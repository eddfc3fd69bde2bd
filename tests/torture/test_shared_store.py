"""Rows 4 and 5 of the fault table: many processes on one store compute each stage once."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from pathlib import Path

import pytest

import backdoor_lab.pipeline.cell_pipeline as chain_module
from tests.helpers.cells import lasting, run_here

DEFENSES = ("spectral", "none", "random", "oracle")


def side_by_side(root: Path, cells: list[tuple[str, ...]], start: float) -> list[int]:
    """Run one forked process for each list of overrides, all starting at the same moment. Returns
    their exit codes."""
    children = []
    for number, overrides in enumerate(cells):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                counted(root / "fits")
                while time.monotonic() < start:
                    time.sleep(0.001)
                run_here(root / "store", root / f"cell{number}", *overrides)
                code = 0
            finally:
                os._exit(code)
        children.append(pid)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]


def counted(folder: Path) -> None:
    """Makes every later training in this process leave a file in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    original = chain_module.fit

    def fit(job: object, machine: object, **options: object) -> object:
        (folder / f"{job.seed}-{job.training.digest[:8]}-{os.getpid()}").touch()  # type: ignore[attr-defined]
        return original(job, machine, **options)  # type: ignore[arg-type]

    chain_module.fit = fit  # type: ignore[assignment]


@pytest.mark.parametrize("attempt", range(5))
def test_four_processes_running_the_same_cell_train_its_networks_once(
    attempt: int, tmp_path: Path
) -> None:
    """All processes end with the same record. In total, two networks are trained."""
    codes = side_by_side(tmp_path, [()] * 4, time.monotonic() + 0.3)
    assert codes == [0, 0, 0, 0]
    records = [json.loads(path.read_text()) for path in tmp_path.glob("cell*/record.json")]
    assert len(records) == 4
    assert all(lasting(each) == lasting(records[0]) for each in records)
    assert records[0]["status"] == "done"
    assert len(list((tmp_path / "fits").iterdir())) == 2


def test_eight_cells_in_four_processes_share_two_attacked_networks(tmp_path: Path) -> None:
    """Two attacked networks are trained, and one retraining is shared by both oracles."""
    cells = [(f"trigger={t}", f"defense={d}") for t in ("pixel", "pattern") for d in DEFENSES]
    for half in (cells[::2], cells[1::2]):
        assert side_by_side(tmp_path, half, time.monotonic() + 0.3) == [0] * 4
    runs = Counter(path.name.rpartition("-")[0] for path in (tmp_path / "fits").iterdir())
    assert set(runs.values()) == {1}, "one stage was computed twice"
    attacked = {manifest.parent for manifest in (tmp_path / "store/train").glob("*/manifest.json")}
    assert len(attacked) == 2
    assert len(list((tmp_path / "store/retrain").glob("*/manifest.json"))) == 7
