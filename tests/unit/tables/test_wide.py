"""Tables of any layout: rows and columns, splitting, marks, errors and saved layouts."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from backdoor_lab.page.write import write_tables
from backdoor_lab.reports.__main__ import main
from backdoor_lab.results.facts import CellFields
from backdoor_lab.results.sweeps import read_sweep
from backdoor_lab.tables.best import ONE_SEED
from backdoor_lab.tables.layout import PivotSpec, layout_of
from backdoor_lab.tables.pivot import PivotTable, pivot_cells
from backdoor_lab.tables.text import document, grid
from backdoor_lab.tables.writers import latex, markdown, page
from tests.helpers.hostile import NAMES
from tests.helpers.records import PROTOCOL, failed, record, write_sweep
from tests.helpers.tables import Tags, latex_with_booktabs
from tests.helpers.written import contents

ROOT = Path(__file__).resolve().parents[3]
BY_DEFENSE = PivotSpec(("target",), ("defense",), ("asr2", "nat2"))


def wide(
    folder: Path, made: list[dict[str, Any]], layout: PivotSpec, asked: Any = None
) -> list[PivotTable]:
    return pivot_cells(read_sweep(write_sweep(folder / "s", made, asked)).cells, layout)


def repeated(steps: int, **said: Any) -> list[dict[str, Any]]:
    """Four seeds of a cell whose figures grow with the square of the seed, in units of `steps` /
    1000. The difference of cells with different `steps` varies between seeds."""
    figures = {name: value for name, value in said.items() if isinstance(value, float)}
    return [
        record(seed=s, **said | {name: v + steps * s**2 / 1000 for name, v in figures.items()})
        for s in range(4)
    ]


def test_the_significantly_best_value_of_a_row_is_bold(tmp_path: Path) -> None:
    """The paired test separates 40 % from 50 %, but not two values of 95 %."""
    figures = {"spectral": (0.5, 0.9), "none": (0.9, 0.95), "random": (0.4, 0.95),
               "oracle": (0.0, 0.98)}  # fmt: skip
    made = [
        each
        for t in ("bird", "dog")
        for steps, (d, (asr, nat)) in enumerate(figures.items())
        for each in repeated(steps, target=t, defense=d, asr2=asr, nat2=nat)
    ]
    (table,) = wide(tmp_path, made, BY_DEFENSE)
    shown = grid(table)
    assert shown.best == {(0, 5), (1, 5)}
    assert "**40.70 ± 1.29**" in markdown(document(table))
    assert '<td class="best">40.70 ± 1.29</td>' in page(document(table))
    assert r"\textbf{40.70 $\pm$ 1.29}" in latex(document(table))
    (note,) = [note for note in shown.notes if note.startswith("Bold")]
    assert "paired t test" in note
    assert note.endswith("4 seeds.")


def test_no_value_is_bold_if_there_is_only_one_seed(tmp_path: Path) -> None:
    figures = {"spectral": (0.5, 0.9), "none": (1.0, 0.95), "random": (0.4, 0.95),
               "oracle": (0.0, 1.0)}  # fmt: skip
    made = [
        record(target=t, defense=d, asr2=asr, nat2=nat)
        for t in ("bird", "dog")
        for d, (asr, nat) in figures.items()
    ]
    (table,) = wide(tmp_path, made, BY_DEFENSE)
    shown = grid(table)
    assert shown.over == ["", *(d for d in figures for _ in range(2))]
    assert shown.head == ["Target", *["ASR2", "Nat2"] * 4]
    assert shown.rows == [
        [t, "50.00", "90.00", "100.00", "95.00", "40.00", "95.00", "0.00", "100.00"]
        for t in ("bird", "dog")
    ]
    assert not shown.best
    assert shown.notes[-1] == ONE_SEED
    text = markdown(document(table))
    assert "| Target | spectral ASR2 | spectral Nat2 | none ASR2 |" in text
    assert "**" not in text
    assert r"\multicolumn{2}{c}{spectral} & \multicolumn{2}{c}{none}" in latex(document(table))
    assert r"\cmidrule(lr){2-3} \cmidrule(lr){4-5}" in latex(document(table))
    assert '<th colspan="2">spectral</th>' in page(document(table))


def test_rates_on_transformed_images_are_columns_selected_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The rates are in percent. An unknown transformation is an error."""
    made = [
        record(defense=d, asr1=0.9, asr2=0.1,
               under={"jpeg75": {"asr1": 0.5, "asr2": v}, "blur0.5": {"nat1": 0.875}})
        for d, v in (("spectral", 0.25), ("none", 0.75))
    ]  # fmt: skip
    folder = write_sweep(tmp_path / "s", made)
    cells = read_sweep(folder).cells
    asked = {"rows": "defense", "values": "asr1_under.jpeg75,asr2_under.jpeg75,nat1_under.blur0.5"}
    (table,) = pivot_cells(cells, layout_of(asked, cells))
    shown = grid(table)
    assert shown.head == ["Defense", "ASR1 jpeg75", "ASR2 jpeg75", "Nat1 blur0.5"]
    assert shown.rows == [
        ["spectral", "50.00", "25.00", "87.50"], ["none", "50.00", "75.00", "87.50"]
    ]  # fmt: skip
    assert "before the defense, after the transformation jpeg75, in %" in markdown(document(table))
    assert main([str(folder), "values=asr1_under.jpeg90"]) == 2
    assert "'asr1_under.jpeg90' is not known" in capsys.readouterr().err


def test_defenses_in_rows_are_compared_within_a_column(tmp_path: Path) -> None:
    made = [each for n, (t, d, v) in enumerate((
        ("pixel", "spectral", 0.2), ("pixel", "none", 0.9),
        ("pattern", "spectral", 0.7), ("pattern", "none", 0.6),
    )) for each in repeated(n, trigger=t, defense=d, asr2=v)]  # fmt: skip
    (table,) = wide(tmp_path, made, PivotSpec(("defense",), ("trigger",), ("asr2",)))
    assert grid(table).best == {(0, 1), (1, 2)}


def test_without_a_defense_axis_the_values_of_each_row_are_compared(tmp_path: Path) -> None:
    made = [each for steps, (r, v) in enumerate((("a", 0.91), ("b", 0.94)))
            for each in repeated(steps, choices={"recipe": r}, nat1=v)]  # fmt: skip
    for n, one in enumerate(made):
        one["id"] = str(n)
    (table,) = wide(tmp_path, made, PivotSpec(("target",), ("recipe",), ("nat1", "pois_left")))
    assert grid(table).best == {(0, 3)}
    assert any("of a row against one attack" in note for note in grid(table).notes)


@pytest.mark.parametrize("task", [
    ("trigger", "pixel", "pattern"), ("target", "bird", "dog"), ("ratio", 0.05, 0.1),
    ("source", "cat", None), ("dataset", "drawn", "photographs"),
])  # fmt: skip
def test_values_of_different_attacks_or_data_sets_are_not_compared_to_find_the_best(
    tmp_path: Path, task: tuple[str, Any, Any]
) -> None:
    name, *values = task
    made = [
        each
        for steps, (v, nat) in enumerate(zip(values, (0.91, 0.94), strict=True))
        for each in repeated(steps, choices={name: v}, nat1=nat)
    ]
    for n, one in enumerate(made):
        one["id"] = str(n)
    (table,) = wide(tmp_path, made, PivotSpec(("model",), (name,), ("nat1", "asr1")))
    assert len(table.columns) == 2
    assert not grid(table).best
    assert any("no two values compete" in note for note in grid(table).notes)


def test_values_before_the_defense_are_not_compared_between_defenses(tmp_path: Path) -> None:
    made = [each for steps, (d, v) in enumerate((("spectral", 0.9), ("none", 0.95)))
            for each in repeated(steps, defense=d, nat1=v)]  # fmt: skip
    (table,) = wide(tmp_path, made, PivotSpec(("target",), ("defense",), ("nat1",)))
    assert not grid(table).best


def test_tables_show_every_unfinished_cell(tmp_path: Path) -> None:
    asked = [record(target=t, defense=d, seed=s, asr2=0.01)
             for t in ("bird", "dog") for d in ("spectral", "none") for s in (0, 1)]  # fmt: skip
    made = [
        asked[0],
        failed(asked[1]),
        *asked[2:4],
        failed(asked[4]),
        failed(asked[5], "failed: x"),
    ]
    stray = record(target="cat", defense="abl", asr2=None)
    (table,) = wide(tmp_path, [*made, stray], BY_DEFENSE, [*asked, stray])
    shown = grid(table)
    assert [row[1::2] for row in shown.rows] == [
        ["1.00 (n=1)", "1.00 ± 0.00", "", "1-2"],
        ["1 failed: oom, 1 failed: x", "2 missing", "", "0"],
        ["", "", "–", "1"],
    ]
    (open_cells,) = [note for note in shown.notes if note.startswith("Not done")]
    assert "bird, spectral, seed 1: failed: oom" in open_cells
    assert "dog, none, seed 0: missing" in open_cells
    assert any("4 of 9 cells done" in note for note in shown.notes)


def test_a_note_lists_unreadable_records(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "s", [record()])
    (folder / "stray").mkdir()
    (folder / "stray" / "record.json").write_text("{")
    (table,) = pivot_cells(read_sweep(folder).cells, BY_DEFENSE)
    assert any("Not in any table: stray (failed: damaged record)" in note for note in table.notes)


@pytest.mark.parametrize("name", ["dataset", "model", "recipe", "trigger", "source", "ratio"])
def test_cells_are_not_averaged_over_a_field_missing_from_rows_and_columns(
    tmp_path: Path, name: str
) -> None:
    made = [record(choices={name: v}, id=str(v)) for v in ((0.1, 0.2) if name == "ratio" else "ab")]
    found = wide(tmp_path, made, BY_DEFENSE)
    assert [place.asked for table in found for place in table.cells.values()] == [1, 1]
    assert len({table.title for table in found}) == len({table.slug for table in found}) == 2
    (together,) = wide(tmp_path, made, PivotSpec((name,), ("defense",), ("asr2",)))
    assert len(together.rows) == 2


def test_varying_configuration_values_split_the_table_or_become_rows_or_columns(
    tmp_path: Path,
) -> None:
    made = [record(), record(config={"recipe": {"lr": 0.01}, "seed": 0}, id="other")]
    assert len(wide(tmp_path, made, BY_DEFENSE)) == 2
    (table,) = wide(tmp_path, made, PivotSpec(("config.recipe.lr",), (), ("asr2",)))
    assert table.rows == [("0.01",), ("0.1",)]
    (table,) = wide(tmp_path, made, PivotSpec(("target",), ("config.recipe.lr",), ("asr2",)))
    assert grid(table).head == ["Target", "lr 0.01", "lr 0.1"]


def test_protocol_values_that_depend_only_on_the_row_or_column_do_not_split_the_table_but_are_noted(
    tmp_path: Path,
) -> None:
    other = {**PROTOCOL, "removal_budget": "15%"}
    made = [record(), record(defense="abl", protocol=other), record(defense="none")]
    (table,) = wide(tmp_path, made, BY_DEFENSE)
    assert any("budget=1.5eps (spectral, none) | 15% (abl)" in note for note in table.notes)
    # Values that differ within one defense split the table.
    made.append(record(defense="abl", id="again"))
    assert len(wide(tmp_path / "again", made, BY_DEFENSE)) == 2


def test_protocols_can_be_the_columns_of_a_table(tmp_path: Path) -> None:
    other = {**PROTOCOL, "name": "literal", "ratio_of": "all"}
    made = [record(), record(protocol=other, choices={"protocol": "literal"}, id="b")]
    (table,) = wide(tmp_path, made, PivotSpec(("target",), ("protocol",), ("asr2",)))
    assert table.columns == [("group13",), ("literal",)]
    assert sum(note.startswith("Protocol ") for note in table.notes) == 2
    assert len(wide(tmp_path, made, BY_DEFENSE)) == 2


def test_the_protocol_and_the_versions_are_printed_below_a_table(tmp_path: Path) -> None:
    (table,) = wide(tmp_path, [record()], BY_DEFENSE)
    text = markdown(document(table))
    assert "- Protocol group13@1: apply_trigger=before_augmentation, asr_on=not_target, " in text
    assert "- Versions: backdoor_lab 0.1.0, torch 2.10.0." in text
    assert "ASR2: share of triggered test images" in text


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"rows": "targett"}, "Did you mean 'target'"),
        ({"columns": "protocol.removal_budge"}, "protocol.removal_budget"),
        ({"rows": "config.recipe.lrr"}, "config.recipe.lr"),
        ({"values": "asr"}, "n_poisoned, n_covers"),
        ({"rows": "target,target"}, "twice"),
        ({"rows": "target", "columns": "defense,target"}, "both contain target"),
        ({"rows": "target,,ratio"}, "''"),
        ({"row": "target"}, "rows=, columns=, values="),
        ({"rows": ""}, "`rows=` is empty"),
        ({"values": " ", "rows": "target"}, "`values=` is empty"),
    ],
)
def test_unknown_names_are_refused_with_one_clear_error(
    tmp_path: Path, given: dict[str, str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_sweep(tmp_path / "s", [record()])
    assert main([str(folder), *(f"{k}={v}" for k, v in given.items())]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert len(told.err.splitlines()) == 1
    assert said in told.err
    assert not (folder / "tables").exists()


def test_a_folder_name_with_an_equals_sign_is_not_taken_for_an_option(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "rows=x", [record()])
    assert main([str(folder), "values=asr2"]) == 0
    assert list((folder / "tables").glob("wide_*.md"))


def test_tables_have_the_layout_of_the_report_by_default(tmp_path: Path) -> None:
    cells = read_sweep(write_sweep(tmp_path / "s", [record()])).cells
    assert layout_of({"columns": "defense"}, cells) == PivotSpec(columns=("defense",))
    assert layout_of({"columns": ""}, cells) == PivotSpec()
    write_tables(tmp_path / "s")
    assert not list((tmp_path / "s" / "tables").glob("wide_*"))


def test_a_table_in_a_requested_layout_is_updated_when_the_sweep_grows(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "s", [record(asr2=0.25)])
    tables = folder / "tables"
    assert main([str(folder), "columns=defense", "values=asr2"]) == 0
    assert main([str(folder), "rows=trigger", "values=nat2"]) == 0
    names = set(contents(tables))
    first = contents(tables)
    assert main([str(folder), "columns=defense", "values=asr2"]) == 0
    assert set(contents(tables)) == names
    write_sweep(folder, [record(asr2=0.25), record(seed=1, asr2=0.75)])
    write_tables(folder)
    assert set(contents(tables)) == names
    changed = [name for name in names if contents(tables)[name] != first[name]]
    assert sum(name.startswith("wide_") for name in changed) == 8
    assert "50.00 ± " in next(tables.glob("wide_*asr2*.md")).read_text()
    (tables / "layouts.json").unlink()
    write_tables(folder)
    assert not list(tables.glob("wide_*"))


@pytest.mark.parametrize(
    "text",
    ["{", "7", '[3, {"rows": 5}]', '[{"rows": ["../x"], "columns": [], "values": ["asr2"]}]',
     '[{"rows": ["target"], "columns": [], "values": ["passwd"]}]', "[" * 100_000],
)  # fmt: skip
def test_a_damaged_file_of_layouts_is_ignored(tmp_path: Path, text: str) -> None:
    folder = write_sweep(tmp_path / "s", [record()])
    (folder / "tables").mkdir()
    (folder / "tables" / "layouts.json").write_text(text)
    write_tables(folder)
    assert not list(folder.glob("**/wide_*"))


@pytest.mark.parametrize("name", NAMES)
def test_hostile_names_are_escaped(tmp_path: Path, name: str) -> None:
    made = [record(target=name, choices={"defense": name}, trigger="pixel", id="a"), record(id="b")]
    (table,) = wide(tmp_path, made, BY_DEFENSE)
    reader = Tags()
    reader.feed(page(document(table)))
    assert reader.tags <= {
        "html", "head", "meta", "title", "style", "body", "h3", "table", "tr", "th", "td", "p",
    }  # fmt: skip
    assert latex(document(table)).isascii()
    assert "\\input" not in latex(document(table))
    assert not any(c in markdown(document(table)) for c in "<\x1b\u202e")
    folder = write_sweep(tmp_path / "deep" / "t", [record(trigger=name, id="a")])
    assert main([str(folder), "columns=defense"]) == 0
    written = {path.parent for path in (tmp_path / "deep").rglob("*") if path.is_file()}
    assert written == {folder, folder / "a", folder / "tables"}


@pytest.mark.skipif(not latex_with_booktabs(), reason="no pdflatex with booktabs here")
def test_the_latex_of_every_layout_compiles(tmp_path: Path) -> None:
    made = [record(target=n, trigger=n, choices={"defense": n}, id=str(i), asr2=i / 99)
            for i, n in enumerate(NAMES)]  # fmt: skip
    made += [record(target=NAMES[1], defense=d) for d in ("spectral", "none")]
    layouts = [
        PivotSpec(("target",), ("defense",), ("asr2", "pois_left")),
        PivotSpec(("target", "protocol.ratio_of"), ("seed",), ("nat2",)),
        PivotSpec(("trigger",), (), ("auroc",)),
    ]
    body = "".join(
        latex(document(table)) for each in layouts for table in wide(tmp_path, made, each)
    )
    head = "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\n"
    (tmp_path / "x.tex").write_text(f"{head}{body}\\end{{document}}\n")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape",
               "x.tex"]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout[-2000:]


def told_by_make(*asked: str) -> list[str]:
    """The arguments of the last command that make would run."""
    # As from a terminal, even if these tests were started by make.
    alone = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    said = subprocess.run(
        ["make", "--dry-run", *asked], cwd=ROOT, capture_output=True, text=True, check=True,
        env=alone,
    )  # fmt: skip
    return shlex.split(said.stdout.splitlines()[-1])


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
@pytest.mark.parametrize("goal", ["reproduce", "reproduce-small"])
@pytest.mark.parametrize("path", ["a b/plain (1).tar.xz", "x=1,y.zip", "it's/set.tar", "é.zip"])
def test_the_makefile_passes_any_data_path_to_hydra_unchanged(goal: str, path: str) -> None:
    """Hydra reads it as one value, not as a sweep."""
    words = told_by_make(goal, f"DATA={path}")
    (found,) = OverridesParser.create().parse_overrides([words[-1]])
    assert (found.key_or_group, found.value()) == ("dataset.root", path)
    assert not found.is_sweep_override()


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
def test_the_makefile_passes_rows_columns_and_values_to_the_reports_command() -> None:
    asked = ["ROWS=target, ratio", "COLUMNS=defense", "VALUES=asr2", "ARGS=extra", "SWEEPS=here"]
    words = told_by_make("tables", *asked)
    expected = ["here", "rows=target, ratio", "columns=defense", "values=asr2", "extra"]
    assert words[words.index("backdoor_lab.reports") + 1 :] == expected


def test_fields_that_are_determined_by_other_fields_are_found(tmp_path: Path) -> None:
    both = (("bird", "cat"), ("dog", "cow"), ("bird", "cat"))
    made = [record(target=t, choices={"source": s}, id=f"{t}{n}") for n, (t, s) in enumerate(both)]
    facts = CellFields(read_sweep(write_sweep(tmp_path / "s", made)).cells)
    assert facts.determined(["source", "seed"], ["target"]) == ["source", "seed"]
    assert facts.determined(["source", "target"], ["seed"]) == []
    assert facts.determined(["source"], ["seed"], among=[0]) == ["source"]
