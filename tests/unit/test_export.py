"""The exported table: every column is documented, and every value equals that of its record."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from backdoor_lab.export import IMAGES_HEAD, frame_of, main, write_frame
from backdoor_lab.page.write import write_tables
from backdoor_lab.results.columns import COLUMNS
from backdoor_lab.results.frozen import frozen_lines
from backdoor_lab.results.image_table import IMAGE_COLUMNS
from backdoor_lab.results.records import CHOICES
from backdoor_lab.results.sweeps import read_sweep
from backdoor_lab.tables.sheets import guarded
from tests.helpers.cells import run_here
from tests.helpers.hostile import NAMES
from tests.helpers.records import GRID, documented, everything, failed, record, write_sweep
from tests.helpers.stages import sweep as sweep_with_store

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = ROOT / "multirun_reports" / "demo" / "controls"
# This example is in the guide to the tables.
EXAMPLE = """\
import pandas as pd

cells = pd.read_csv("records.csv")
done = cells[cells["status"] == "done"]
method = ["defense", "defense_version"]
print(done.groupby(method)[["nat2", "asr2", "pois_left"]].agg(["mean", "std", "count"]))
print(done.pivot_table("asr2", index="seed", columns=method))
"""


def frame(folder: Path, made: list[dict[str, Any]], asked: Any = None) -> pd.DataFrame:
    return frame_of([read_sweep(write_sweep(folder / "s", made, asked))])


def test_exported_columns_are_exactly_the_documented_ones(tmp_path: Path) -> None:
    made = [everything(), everything(seed=1, config={"recipe": {"lr": 0.5}}), everything(id="x")]
    found = frame(tmp_path, [*made, failed(everything(seed=2))])
    assert all(documented(name) for name in found)
    for name in COLUMNS:
        family = name.removesuffix("*")
        assert name in found or any(each.startswith(family) for each in found), name
    assert len(set(found)) == len(found.columns)
    assert json.loads(found["notes"][0]) == {"classes": [2]}


def test_records_csv_of_a_sweep_equals_the_output_of_the_export_command(
    tmp_path: Path,
) -> None:
    folder = write_sweep(tmp_path / "s", [everything(), failed(everything(seed=1))])
    write_tables(folder)
    written = pd.read_csv(folder / "tables" / "records.csv")
    write_frame(frame_of([read_sweep(folder)]), tmp_path / "exported.csv")
    pd.testing.assert_frame_equal(written, pd.read_csv(tmp_path / "exported.csv"))
    assert list(written) == list(frame_of([read_sweep(folder)]))


@pytest.mark.parametrize("folder", sorted((ROOT / "multirun_reports").glob("*/*/records.jsonl")))
def test_every_value_of_the_committed_records_is_exported(folder: Path) -> None:
    """The only exceptions are listed in this test."""
    sweep = read_sweep(folder.parent)
    found = frame_of([sweep]).set_index("id")
    assert all(documented(name) for name in found)
    for text in [*frozen_lines(folder.parent)][:3]:
        made = json.loads(text)
        line = found.loc[made["id"]]
        for name, value in made["choices"].items():
            assert line[name] == value or (pd.isna(line[name]) and value is None)
        # A curve has many numbers, so it has no column.
        found_out = {k: v for k, v in (made["detection"] or {}).items() if k != "curve"}
        parts = [made["counts"], found_out, {k: made[k] for k in ("nat1", "asr2")}]
        parts += [{f"{family}.{k}": v for k, v in made["run"][family].items()}
                  for family in ("seconds", "images_per_s", "versions")]  # fmt: skip
        parts += [{f"hashes.{k}": v for k, v in made["hashes"].items() if k != "curve"}]
        parts += [{k: made["run"][k] for k in ("device", "command", "git_commit", "wall_seconds")}]
        for name, value in [pair for part in parts for pair in part.items()]:
            assert line[name] == value or (pd.isna(line[name]) and value is None), name
        for name, value in made["protocol"].items():
            if name != "name":
                number = isinstance(value, (int, float)) and not isinstance(value, bool)
                said = f"{value:g}" if number else json.dumps(value).strip('"')
                said = None if value is None else said
                shown = line[f"protocol.{name}"]
                assert shown == said or (pd.isna(shown) and said is None), name


def test_the_export_has_one_row_per_cell_of_any_status(tmp_path: Path) -> None:
    asked = [record(), failed(record(seed=1)), record(seed=2)]
    asked[1]["error"] = "it broke\nhere"
    found = frame(tmp_path, asked[:2], asked)
    assert list(found["status"]) == ["done", "failed: oom", "missing"]
    assert list(found["seed"]) == [0, 1, 2]
    assert found["error"][1] == "it broke\nhere"
    assert found["nat2"].isna().tolist() == [False, True, True]
    assert set(found["sweep"]) == {"demo"}


def test_several_sweeps_are_distinguished_by_name(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_sweep(tmp_path / name, [record(*cell) for cell in GRID[:3]], asked=[])
    found = frame_of([read_sweep(tmp_path / name) for name in ("a", "b")])
    assert list(found["sweep"]) == ["a"] * 3 + ["b"] * 3


def test_config_values_that_distinguish_cells_are_columns(tmp_path: Path) -> None:
    made = [record(config={"recipe": {"lr": lr}}, id=f"{lr}") for lr in (0.1, 0.01)]
    found = frame(tmp_path, made)
    assert list(found["config.recipe.lr"]) == ["0.1", "0.01"]
    assert not [name for name in frame(tmp_path / "one", made[:1]) if name.startswith("config.")]


def test_exported_csv_and_parquet_files_have_the_same_content(tmp_path: Path) -> None:
    made = [everything(seed=s) for s in range(3)] + [failed(everything(target="dog"))]
    made[1]["detection"]["auroc"] = None
    found = frame(tmp_path, made)
    for name in ("x.csv", "x.parquet"):
        write_frame(found, tmp_path / name)
    table = pd.read_parquet(tmp_path / "x.parquet")
    pd.testing.assert_frame_equal(table, found)
    types = {str(kind) for kind in table.dtypes}
    assert types == {"string", "float64", "Int64"}
    text = pd.read_csv(tmp_path / "x.csv", dtype={n: str(t) for n, t in table.dtypes.items()})
    pd.testing.assert_frame_equal(text, table)


@pytest.mark.parametrize("name", NAMES)
def test_hostile_text_is_kept_in_csv_and_parquet_files(tmp_path: Path, name: str) -> None:
    made = record(target=name, id="a", status=f"failed: {name}")
    made["run"] = {"seconds": {"train": name, "x": float("nan")}, "device": [name], "versions": 7}
    found = frame(tmp_path, [made])
    for file in ("x.csv", "x.parquet"):
        write_frame(found, tmp_path / file)
    said = name.encode(errors="backslashreplace").decode()
    assert pd.read_parquet(tmp_path / "x.parquet")["target"][0] == said
    with (tmp_path / "x.csv").open(newline="") as stream:
        assert pd.read_csv(stream, keep_default_na=False)["target"][0] == guarded(said)


def test_without_pyarrow_the_error_names_the_package_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_sweep(tmp_path / "s", [record()])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert main([str(folder), "--out", str(tmp_path / "x.parquet")]) == 2
    assert "pip install 'backdoor-lab[parquet]'" in capsys.readouterr().err
    assert main([str(folder), "--out", str(tmp_path / "x.csv")]) == 0


@pytest.mark.parametrize(
    "given",
    [
        "s",
        "--out x.csv",
        "none --out x.csv",
        "s --out x.txt",
        "s --out no/x.csv",
        "s --out x.csv --store s",
        "s --images --out x.csv",
        "s s --images --out x.csv",
        "s --images",
        "none --images --out x.csv",
    ],
)
def test_bad_arguments_give_a_one_line_error_and_exit_code_2(
    tmp_path: Path, given: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    write_sweep(Path("s"), [record()])
    assert main(given.split()) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not list(Path().glob("x.*"))


def test_the_columns_option_lists_the_documented_columns(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--columns"]) == 0
    said = capsys.readouterr().out.partition(f"{IMAGES_HEAD}\n")
    cells, images = (
        dict(line.split(maxsplit=1) for line in part.splitlines() if line.startswith(" "))
        for part in said[::2]
    )
    assert cells == COLUMNS
    assert set(CHOICES) <= set(cells)
    assert images == IMAGE_COLUMNS


def test_the_export_command_imports_neither_torch_nor_scipy(tmp_path: Path) -> None:
    folder, _ = sweep_with_store(tmp_path, 1)
    (cell,) = folder.glob("pixel*")
    code = (
        "import sys; from backdoor_lab.export import main\n"
        f"out = ['--out', {str(tmp_path / 'x.csv')!r}]\n"
        f"assert main([{str(folder)!r}, *out]) == main([{str(cell)!r}, '--images', *out]) == 0\n"
        "print('torch' in sys.modules, 'scipy' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.split() == ["False", "False"]


# This example is in the guide to the tables. The guide's tests run it.
IMAGES_EXAMPLE = """\
import pandas as pd

images = pd.read_csv("images.csv")
print(images[images["is_poison"] & ~images["removed"]].sort_values("rank"))
print(images.groupby(["label", "is_poison"])["removed"].mean())
"""


def test_the_images_of_a_cell_are_exported_with_their_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = run_here(tmp_path / ".store", tmp_path / "sweep" / "cell")
    monkeypatch.chdir(tmp_path)
    for name in ("images.csv", "images.parquet"):
        assert main(["sweep/cell", "--images", "--out", name]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "images.csv: 206 images, 6 poisoned, 0 covers, 9 removed"
    table = pd.read_parquet("images.parquet")
    assert list(table) == list(IMAGE_COLUMNS)
    types = {n: str(t) for n, t in table.dtypes.items()}
    pd.testing.assert_frame_equal(pd.read_csv("images.csv", dtype=types), table)
    poison = table[table["is_poison"]]
    assert poison["source_index"].tolist() == made["poison_indices"]
    assert int((~poison["removed"]).sum()) == made["counts"]["pois_left"]
    assert set(table["label"][table["removed"]]) == {"bird"}
    # The filter removes the nine highest scores of the target class.
    assert sorted(table["rank"][table["removed"]]) == list(range(1, 10))
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(IMAGES_EXAMPLE, "README.md", "exec"), {})
    assert "truck" in printed.getvalue()
    assert IMAGES_EXAMPLE in (ROOT / "backdoor_lab/tables/README.md").read_text()


def test_the_means_in_the_readme_example_equal_those_of_the_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([str(COMMITTED), "--out", str(tmp_path / "records.csv")]) == 0
    monkeypatch.chdir(tmp_path)
    said = io.StringIO()
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(said):
        exec(compile(EXAMPLE, "README.md", "exec"), names)
    assert "spectral" in said.getvalue()
    records = [json.loads(line) for line in frozen_lines(COMMITTED)]
    done = names["done"]
    assert isinstance(done, pd.DataFrame)
    means = done.groupby("defense")["asr2"].mean()
    for defense in ("spectral", "none", "random", "oracle"):
        mine = [r["asr2"] for r in records if r["choices"]["defense"] == defense]
        assert means[defense] == pytest.approx(sum(mine) / len(mine))
    assert EXAMPLE in (ROOT / "backdoor_lab/tables/README.md").read_text()
