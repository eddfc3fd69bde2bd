"""`backdoor_lab.read_results` returns the table that the export command writes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import backdoor_lab as bl
from backdoor_lab.export import main
from backdoor_lab.results.records import SCHEMA
from tests.helpers.cells import environment
from tests.helpers.records import GRID, documented, everything, failed, record, write_sweep

ROOT = Path(__file__).resolve().parents[3]
DEMO = ROOT / "multirun_reports" / "demo"


def two_sweeps(root: Path) -> Path:
    write_sweep(root / "a", [everything(), failed(everything(seed=1))])
    write_sweep(root / "b", [record(*cell) for cell in GRID[:3]])
    return root


def test_the_rows_of_a_sweep_are_those_of_the_export_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = two_sweeps(tmp_path / "sweeps")
    for given in (folder, folder / "a"):
        out = tmp_path / "records.parquet"
        assert main([str(given), "--out", str(out)]) == 0
        found = bl.read_results(given)
        assert len(found) == (5 if given == folder else 2)
        # A column without any value has no type in a file.
        pd.testing.assert_frame_equal(found, pd.read_parquet(out), check_dtype=False)
    assert "cells" in capsys.readouterr().out


def test_columns_are_documented_and_have_three_types(tmp_path: Path) -> None:
    found = bl.read_results(two_sweeps(tmp_path))
    assert all(documented(name) for name in found)
    assert {str(dtype) for dtype in found.dtypes} == {"float64", "Int64", "string"}
    assert (str(found["nat1"].dtype), str(found["seed"].dtype)) == ("float64", "Int64")
    assert list(found.index) == list(range(5))
    rates = found[["nat1", "asr1", "nat2", "asr2"]]
    assert rates.notna().any(axis=None)
    assert ((rates.isna()) | (rates.ge(0) & rates.le(1))).all(axis=None)


def test_several_folders_are_read_once_each(tmp_path: Path) -> None:
    folder = two_sweeps(tmp_path)
    both = bl.read_results([folder / "b", str(folder / "a")])
    assert list(both["sweep"]) == ["demo"] * 5
    assert list(both["status"]) == ["done"] * 4 + ["failed: oom"]
    again = bl.read_results([folder / "b", folder, folder / "a"])
    pd.testing.assert_frame_equal(again, both)


def test_the_committed_demo_has_rows_with_results() -> None:
    found = bl.read_results(DEMO)
    done = found[found["status"] == "done"]
    assert len(done) >= 12
    assert done["nat1"].between(0, 1).all()


def test_a_damaged_record_is_a_warning_and_a_failed_row(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "s", [everything(), everything(seed=1, id="broken")])
    (folder / "broken" / "record.json").write_text("{")
    with pytest.warns(UserWarning, match="damaged record .*broken"):
        found = bl.read_results(folder)
    assert sorted(found["status"].str.startswith("failed")) == [False, True]


def test_a_folder_without_cells_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(FileNotFoundError, match="no such folder: .*nowhere"):
        bl.read_results(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no such folder: .*nowhere"):
        bl.read_results([tmp_path / "empty", tmp_path / "nowhere"])
    with pytest.raises(NotADirectoryError, match="not a folder: .*file"):
        bl.read_results(tmp_path / "file")
    with pytest.raises(ValueError, match="no cells in .*empty"):
        bl.read_results(tmp_path / "empty")
    (tmp_path / "asked").mkdir()
    (tmp_path / "asked" / "sweep.json").write_text(json.dumps({"schema": SCHEMA, "asked": []}))
    with pytest.raises(ValueError, match="no cells in .*asked"):
        bl.read_results(tmp_path / "asked")
    with pytest.raises(ValueError, match="`path` must name at least one folder"):
        bl.read_results([])
    with pytest.raises(ValueError, match="it is empty"):
        bl.read_results("")
    with pytest.raises(TypeError, match="`path` must be a path or several paths, got int"):
        bl.read_results(3)
    with pytest.raises(TypeError, match="`path` must be a path or several paths, got int"):
        bl.read_results([tmp_path, 3])


def test_results_are_read_without_torch() -> None:
    code = (
        "import sys, backdoor_lab as bl;"
        f"print(len(bl.read_results({str(DEMO)!r})) > 0, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["True", "False"]
