"""The commands `reports` and `status`: printed text, written files, imports."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from backdoor_lab import status
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.page.write import print_tables, write_tables
from backdoor_lab.reports.__main__ import main
from backdoor_lab.results.sweeps import Sweep, read_sweep
from tests.helpers.records import GRID, PROTOCOL, failed, record, write_sweep
from tests.helpers.written import contents


def test_tables_are_written_and_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_sweep(tmp_path / "demo", [record(*cell) for cell in GRID])
    print_tables(write_tables(folder))
    printed = capsys.readouterr().out
    names = {f"table_{t}.{s}" for t in ("pixel", "pattern") for s in ("csv", "md", "tex", "html")}
    assert set(contents(folder / "tables")) == names | {"records.csv", "written.json"}
    assert (folder / "tables" / "table_pixel.md").read_text() in printed


def test_writing_the_tables_twice_gives_identical_bytes_and_no_other_files(tmp_path: Path) -> None:
    made = [record(*cell, seed=seed) for cell in GRID for seed in (0, 1)]
    folder = write_sweep(tmp_path / "demo", made)
    write_tables(folder)
    first = contents(folder / "tables")
    write_tables(folder)
    assert contents(folder / "tables") == first
    assert not [name for name in first if name.startswith(".")]


def test_outdated_tables_are_deleted_and_other_files_are_kept(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "demo", [record()])
    write_tables(folder)
    (folder / "tables" / "table_mine.md").write_text("kept")
    write_sweep(folder, [record(), record(choices={"dataset": "other"}, id="other")])
    write_tables(folder)
    names = set(contents(folder / "tables"))
    assert "table_pixel.md" not in names
    assert "table_mine.md" in names
    assert {"table_pixel-synthetic.md", "table_pixel-other.md"} <= names


@pytest.mark.parametrize(
    "listed", ['["../../victim.md", "table_x/../../../victim.md", 3]', "{", "7"]
)
def test_a_manipulated_list_of_written_files_deletes_nothing_outside_the_tables_folder(
    tmp_path: Path, listed: str
) -> None:
    folder = write_sweep(tmp_path / "demo", [record()])
    (tmp_path / "victim.md").write_text("kept")
    (folder / "tables" / "table_x").mkdir(parents=True)
    (folder / "tables" / "written.json").write_text(listed)
    write_tables(folder)
    assert (tmp_path / "victim.md").read_text() == "kept"


@pytest.mark.parametrize("name", ["../../x", "a/b", "..", "A B", "x" * 300, "", "\ud800"])
def test_tables_stay_inside_the_sweep_folder_whatever_the_trigger_name(
    tmp_path: Path, name: str
) -> None:
    folder = write_sweep(tmp_path / "deep" / "demo", [record(trigger=name, id="a")])
    write_tables(folder)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.parent for path in written} == {folder, folder / "a", folder / "tables"}
    assert len(list((folder / "tables").glob("table_*.md"))) == 1


def test_a_tables_folder_that_is_a_link_out_of_the_sweep_folder_is_refused(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "demo", [record()])
    (tmp_path / "elsewhere").mkdir()
    (folder / "tables").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError):
        write_tables(folder)
    assert main([str(folder)]) == 1
    assert not list((tmp_path / "elsewhere").iterdir())


def test_triggers_whose_names_differ_only_in_case_get_separate_files(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "demo", [record(trigger=t, id=i) for t, i in ("A1", "a2")])
    assert len({table.slug for table in write_tables(folder)}) == 2


def test_a_folder_without_a_sweep_is_named_in_the_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([str(tmp_path)]) == 2
    assert str(tmp_path) in (said := capsys.readouterr().err)
    assert "experiment=demo" in said
    monkeypatch.setenv("BACKDOOR_LAB_REPORTS", str(tmp_path / "none"))
    assert main([]) == 0
    assert str(tmp_path / "none") in capsys.readouterr().out
    assert main([str(tmp_path / "typo")]) == 2


def test_commands_do_not_crash_on_empty_or_damaged_sweeps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "sweep.json").write_text("{")
    write_sweep(tmp_path / "t", [record()])
    (tmp_path / "t" / record()["id"] / "record.json").write_text("{")
    assert main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.count("warning: ") == 2
    assert "no cells" in out
    assert "failed: damaged record" in out


def test_commands_do_not_import_torch_and_help_does_not_import_pandas(tmp_path: Path) -> None:
    write_sweep(tmp_path / "demo", [record()])
    code = (
        "import runpy, sys; sys.argv = ['x', *sys.argv[2:], sys.argv[1]]\n"
        "try: runpy.run_module(MODULE, run_name='__main__')\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "heavy = [n for n in ('torch', 'pandas', 'scipy', 'hydra') if n in sys.modules]\n"
        "print(*heavy, file=sys.stderr)"
    )
    for module, option, expected in (
        ("reports", [], "pandas"), ("reports", ["--help"], ""), ("status", [], ""),
    ):  # fmt: skip
        command = [sys.executable, "-c", f"MODULE = 'backdoor_lab.{module}'\n{code}", str(tmp_path)]
        done = subprocess.run([*command, *option], capture_output=True, text=True, check=True)
        assert done.stderr.strip() == expected


def test_a_closed_pipe_or_an_ascii_terminal_causes_no_error(tmp_path: Path) -> None:
    folders = [write_sweep(tmp_path / name, [record()]) for name in ("one", "two")]
    command = [sys.executable, "-m", "backdoor_lab.reports", str(tmp_path)]
    plain = {**os.environ, "PYTHONIOENCODING": "ascii"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=plain
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0
    assert all((folder / "tables" / "table_pixel.md").is_file() for folder in folders)


def states(folder: Path, now: float) -> tuple[Sweep, list[status.State]]:
    sweep = read_sweep(folder)
    return sweep, status.look(sweep, now)


def test_status_shows_done_running_stale_failed_and_missing_cells(tmp_path: Path) -> None:
    asked = [record(seed=seed) for seed in range(5)]
    folder = write_sweep(tmp_path / "s", [asked[0], failed(asked[1])], asked)
    for number, beat in ((2, {"stage": "train", "epoch": 3, "epochs": 8, "pid": 1}), (3, {})):
        path = folder / asked[number]["id"] / "running.json"
        path.parent.mkdir()
        path.write_text(json.dumps(beat))
        os.utime(path, (1000.0 if number == 2 else 900.0,) * 2)
    sweep, found = states(folder, 1010.0)
    assert [s.kind for s in found] == ["done", "failed", "running", "stale", "missing"]
    text = status.show(sweep, found)
    states_of_seeds = (
        "done: seed 0; running: seed 2; stale: seed 3; failed: seed 1; missing: seed 4"
    )
    assert f"spectral  {states_of_seeds}" in text
    assert "train, epoch 3 of 8" in text
    assert "no heartbeat for 2 min" in text
    assert "failed: oom" in text
    assert "5 cells: 1 done, 1 running, 1 stale, 1 failed, 1 missing" in text
    # Repeating the command computes the failed cell again, too.
    assert status.seconds_left(found) == pytest.approx(4 * 58.0)


def test_the_estimated_time_left_ignores_stages_that_were_taken_from_the_store(
    tmp_path: Path,
) -> None:
    asked = [record(seed=seed) for seed in range(4)]
    asked[1]["run"]["stages"] = {"train": {"made": False}, "retrain": {"made": True}}
    asked[2]["run"]["stages"] = {"train": {"made": False}}
    folder = write_sweep(tmp_path / "s", asked[:3], asked)
    assert status.seconds_left(states(folder, 0.0)[1]) == pytest.approx((58 + 28) / 2)
    assert status.seconds_left(states(write_sweep(tmp_path / "t", [], asked), 0.0)[1]) is None


@pytest.mark.parametrize("text", ["", "[]", '{"stage": ["\\u001b"], "epoch": {}}'])
def test_a_hostile_heartbeat_is_shown_as_text(tmp_path: Path, text: str) -> None:
    folder = write_sweep(tmp_path / "s", [], [record(id="../s"), record(seed=1)])
    (folder / "unlisted\x1b").mkdir()
    (folder / "unlisted\x1b" / "running.json").write_text(text)
    sweep, found = states(folder, 0.0)
    assert [s.kind for s in found[:2]] == ["missing", "missing"]
    assert len(found) == 3
    assert "\x1b" not in status.show(sweep, found)


def test_status_distinguishes_cells_by_their_configuration(tmp_path: Path) -> None:
    made = [record(config={"recipe": {"lr": lr}, "seed": 0}, id=f"cell{lr}")
            for lr in (0.1, 0.2, 0.3)]  # fmt: skip
    text = status.show(*states(write_sweep(tmp_path / "s", made), 0.0))
    rows = [line.split() for line in text.splitlines() if line.endswith("done: seed 0")]
    assert [row[4] for row in rows] == ["0.1", "0.2", "0.3"]
    # These two differ only in their ids.
    twins = [record(id="one"), failed(record(id="two"))]
    text = status.show(*states(write_sweep(tmp_path / "t", twins), 0.0))
    assert "done: one; failed: two" in text


def test_status_shows_no_percent_sign_if_the_ratio_is_a_number_of_images(tmp_path: Path) -> None:
    made = [record(ratio=500, protocol={**PROTOCOL, "ratio_of": "count"})]
    text = status.show(*states(write_sweep(tmp_path / "s", made), 0.0))
    assert re.search(r"bird +500 +spectral", text)
    assert "%" not in text


def test_status_exits_with_0_for_an_empty_folder_and_2_for_a_missing_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status.main([str(tmp_path)]) == 0
    assert "No sweep found in" in capsys.readouterr().out
    assert status.main([str(tmp_path / "none")]) == 2


def test_the_status_command_has_the_same_default_folder_as_the_reports_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BACKDOOR_LAB_REPORTS", raising=False)
    assert status.main([]) == 0
    assert "No sweep found in multirun_reports." in capsys.readouterr().out
    for place in ("multirun_reports", "elsewhere"):
        write_sweep(tmp_path / place / "mine", [record()])
        assert status.main([]) == 0
        assert f"in {place}/mine" in capsys.readouterr().out
        monkeypatch.setenv("BACKDOOR_LAB_REPORTS", "elsewhere")
