"""The default tables of a sweep: their layout, their numbers against the records, and the
comparison with the `random` control."""

from __future__ import annotations

import csv
import html
import json
import random
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from scipy.stats import binomtest

from backdoor_lab.compare.report import SweepReport
from backdoor_lab.page.write import print_tables, write_tables
from backdoor_lab.results.artifact_reader import raw_records
from backdoor_lab.results.metrics import MEASURE
from backdoor_lab.results.sweeps import read_sweep
from backdoor_lab.tables.best import ONE_SEED
from backdoor_lab.tables.markup import NOTHING
from backdoor_lab.tables.overview import ACROSS_WITH_INTERVALS, MOST
from backdoor_lab.tables.pivot import PivotTable
from backdoor_lab.tables.text import ACROSS, document, grids
from backdoor_lab.tables.writers import markdown
from tests.helpers.hostile import NAMES
from tests.helpers.records import GRID, PROTOCOL, failed, record, write_sweep
from tests.helpers.tables import bare, figures, latex_with_booktabs, parsed, side_by_side, text_of
from tests.helpers.written import contents

TRIGGERS = tuple(f"trigger{n}" for n in range(14))
DEFENSES = ("spectral", "random", "scan", "knn", "oracle", "none")
DETECTION = ("auroc", "average_precision", "tpr_at_1", "tpr_at_5", "tpr", "fpr")
COMMITTED = Path(__file__).resolve().parents[3] / "multirun_reports" / "attacks" / "embedded"


def found(*choices: Any, retrain: bool = True, **over: Any) -> dict[str, Any]:
    """A record with every detection figure. Without retraining it has no figures after the
    filter."""
    made = record(*choices, **over)
    draw = random.Random(made["id"])
    made["detection"] = {name: draw.random() for name in DETECTION}
    # One network per attack and seed, shared by all defenses.
    one = random.Random(ascii([v for k, v in made["choices"].items() if k != "defense"]))
    made |= {"nat1": one.random(), "asr1": one.random()}
    return made if retrain else made | {"nat2": None, "asr2": None}


def shown(folder: Path, made: list[dict[str, Any]], asked: Any = None) -> Sequence[PivotTable]:
    return SweepReport(read_sweep(write_sweep(folder, made, asked))).shown


def layouts(tables: Sequence[PivotTable]) -> list[tuple[Any, Any, Any]]:
    said = [table.spec for table in tables]
    assert not any(each.report for each in said)
    return [(each.rows, each.columns, each.values) for each in said]


def attacks(ratios: Sequence[float] = (0.1, 0.0, 0.3)) -> list[dict[str, Any]]:
    """A sweep of many triggers and few ratios, as in `experiment=attacks`."""
    return [found(t, "bird", r, retrain=False) for t in TRIGGERS for r in ratios]


def test_the_counts_of_flagged_classes_are_columns_of_the_table(tmp_path: Path) -> None:
    made = [found("pixel", "bird", r, defense=d, retrain=False)
            for r in (0.0, 0.1) for d in DEFENSES[:2]]  # fmt: skip
    (wide, *_), *_ = [layouts(shown(tmp_path / "told", made))[1:]]
    assert "n_accused" not in wide[2]
    for each in made:
        each["counts"] |= {"n_accused": 1, "n_named": 0}
    (wide, *_), *_ = [layouts(shown(tmp_path / "suspicious", made))[1:]]
    assert wide[2][:2] == ("n_accused", "n_named")


@pytest.mark.parametrize(
    ("axis", "others"),
    [
        ("trigger", ("target", "ratio", "seed")), ("defense", ("target", "ratio", "seed")),
        ("model", ("seed",)), ("recipe", ("ratio",)),
    ],
)  # fmt: skip
def test_tables_have_the_layout_of_the_report_unless_an_axis_has_too_many_values(
    tmp_path: Path, axis: str, others: tuple[str, ...]
) -> None:
    values = {"target": ("bird", "dog"), "ratio": (0.05, 0.1), "seed": (0, 1)}
    for count in (MOST, MOST + 1):
        chosen: list[dict[str, Any]] = [{axis: f"v{n}"} for n in range(count)]
        for name in others:
            chosen = [each | {name: v} for each in chosen for v in values[name]]
        made = [record(seed=each.get("seed", 0), choices=each, id=f"c{n}")
                for n, each in enumerate(chosen)]  # fmt: skip
        tables = shown(tmp_path / str(count), made)
        assert all(table.spec.report for table in tables) == (count == MOST)
        assert all(not table.spec.report for table in tables) == (count > MOST)


def test_tables_of_many_targets_and_ratios_have_the_layout_of_the_report(tmp_path: Path) -> None:
    made = [record("pixel", f"t{n}", r / 100) for n in range(10) for r in range(1, 10)]
    assert [table.spec.report for table in shown(tmp_path / "s", made)] == [True]


def test_tables_of_many_triggers_and_few_ratios_have_triggers_in_rows(tmp_path: Path) -> None:
    tables = shown(tmp_path / "s", attacks())
    assert layouts(tables) == [
        (("trigger",), ("ratio",), ("n_poisoned", "nat1", "asr1", "pois_left")),
        (("trigger",), ("ratio",), ("auroc", "average_precision", "tpr_at_1", "tpr_at_5")),
    ]
    (first, _) = tables
    assert not first.spec.report
    assert [row for (row,) in first.rows] == list(TRIGGERS)
    assert first.columns == [("0%",), ("10%",), ("30%",)]
    # Ratios are different attacks: no value of a row is the best.
    assert not any(grid.best for table in tables for grid in grids(table))


def test_options_determined_by_the_trigger_get_no_row_or_column_of_their_own(
    tmp_path: Path,
) -> None:
    made = attacks((0.1,))
    for one in made[:3]:
        one["choices"]["source"] = "cat"
        one["protocol"] = {**PROTOCOL, "asr_on": "source"}
    (table,) = shown(tmp_path / "s", made)
    assert layouts([table]) == [(("trigger",), (), (
        "n_poisoned", "nat1", "asr1", "pois_left", "auroc", "average_precision", "tpr_at_1",
        "tpr_at_5",
    ))]  # fmt: skip
    # The longest list of names is abbreviated.
    told = "asr_on=source (trigger0, trigger1, trigger2) \\| not_target (all others),"
    assert told in markdown(document(table))


def test_protocol_values_that_vary_are_all_listed_in_the_protocol_note(tmp_path: Path) -> None:
    layers = ("penultimate", "layer4", "layer3")
    made = [found("pixel", "bird", 0.1, d, 0) for d in DEFENSES for _ in layers]
    for n, one in enumerate(made):
        one["id"], one["protocol"] = f"cell{n}", {**PROTOCOL, "layer": layers[n % len(layers)]}
    tables = shown(tmp_path / "s", made)
    assert tables
    for table in tables:
        assert "layer=penultimate \\| layer4 \\| layer3," in markdown(document(table))


def test_tables_of_many_defenses_have_defenses_in_rows_and_triggers_in_columns(
    tmp_path: Path,
) -> None:
    # Equal figures in all seeds: differences are constant, and the t test is undefined.
    once = [found(t, "bird", 0.1, d) for t in ("pixel", "pattern") for d in DEFENSES]
    made = [
        {**one, "id": f"{one['id']}{seed}", "choices": {**one["choices"], "seed": seed},
         "config": {"seed": seed}}
        for one in once for seed in range(3)
    ]  # fmt: skip
    tables = shown(tmp_path / "s", made)
    assert layouts(tables) == [
        (("trigger",), (), ("n_poisoned", "nat1", "asr1")),
        (("defense",), ("trigger",), ("pois_left", "nat2", "asr2")),
        (("defense",), ("trigger",), ("auroc", "average_precision")),
        (("defense",), ("trigger",), ("tpr_at_1", "tpr_at_5")),
    ]
    for table in tables:
        (grid,) = grids(table)
        assert len(grid.head) - grid.left - 1 <= ACROSS_WITH_INTERVALS
    _, after, filters, rates = (grids(table)[0] for table in tables)
    assert [row[0] for row in after.rows] == list(DEFENSES)
    for grid in (after, filters, rates):
        assert not grid.best
        assert any("paired t test" in note and "3 seeds" in note for note in grid.notes)


def test_measures_taken_before_the_defense_are_shown_once_for_all_defenses(tmp_path: Path) -> None:
    made = [found("pixel", "bird", r, d, 0) for r in (0.05, 0.1) for d in DEFENSES]
    made[0] = failed(made[0])
    before = shown(tmp_path / "s", made)[0]
    (grid,) = grids(before)
    # Spectral has a failed cell, so random, the first complete defense, is shown.
    assert any("are from cells with defense random." in note for note in grid.notes)
    mine = [one for one in made if one["choices"]["defense"] == "random"]
    assert grid.rows == [
        [f"{100 * one['choices']['ratio']:g}%", str(one["counts"]["n_poisoned"]),
         f"{100 * one['nat1']:.2f}", f"{100 * one['asr1']:.2f}"] for one in mine
    ]  # fmt: skip


def test_values_before_the_defense_are_shown_for_every_attack(tmp_path: Path) -> None:
    """The five attacks have different defenses. One attack also has a failed cell."""
    made = [found(t, "bird", 0.1, d, 0) for t, d in zip(TRIGGERS, DEFENSES[:5], strict=False)]
    # Budget and layer belong to the defense and do not make another attack.
    made[1]["protocol"] = {
        **PROTOCOL,
        "removal_budget": "15%",
        "filter_scope": "all",
        "layer": "layer4",
    }
    more = [found("trigger0", "bird", 0.1, d, 0) for d in DEFENSES[1:3]]
    tables = shown(tmp_path / "s", [failed(more[0]), *made, more[1]])
    before = tables[0]
    assert layouts([before])[0] == (("trigger",), (), ("n_poisoned", "nat1", "asr1"))
    (grid,) = grids(before)
    assert sorted(grid.rows) == [
        [one["choices"]["trigger"], str(one["counts"]["n_poisoned"]), f"{100 * one['nat1']:.2f}",
         f"{100 * one['asr1']:.2f}"] for one in made
    ]  # fmt: skip
    assert not any("Not done" in note for note in grid.notes)


def test_tables_of_many_triggers_and_defenses_are_split_into_panels(tmp_path: Path) -> None:
    made = [found(t, "bird", 0.1, d, retrain=False) for t in TRIGGERS for d in DEFENSES[:5]]
    tables = shown(tmp_path / "s", made)
    said = [values for _, _, values in layouts(tables)]
    assert said == [("n_poisoned", "nat1", "asr1"), ("pois_left",), ("auroc",),
                    ("average_precision",), ("tpr_at_1",), ("tpr_at_5",)]  # fmt: skip
    for table in tables[1:]:
        panels = grids(table)
        assert [grid.head[1:] for grid in panels] == [list(TRIGGERS[:7]), list(TRIGGERS[7:])]
        assert all(len(grid.head) - grid.left <= ACROSS for grid in panels)
        assert [len(grid.notes) > 0 for grid in panels] == [False, True]
        assert panels[0].title.endswith("(1 of 2)")
        assert not any(grid.best for grid in panels)
        assert panels[1].notes[-1] == ONE_SEED


def test_a_row_is_left_empty_in_panels_for_which_it_has_no_cells(tmp_path: Path) -> None:
    names = [f"t{n:02}" for n in range(2 * ACROSS)]
    made = [found(name, name, 0.1, defense=name) for name in names]
    tables = shown(tmp_path, made)
    panels = [grid for table in tables for grid in grids(table) if "of 2)" in grid.title]
    rows = [row[grid.left :] for grid in panels for row in grid.rows]
    assert any(not any(row) for row in rows)
    assert any(any(row) for row in rows)


def test_a_configuration_value_that_varies_becomes_a_row_or_column(tmp_path: Path) -> None:
    rates = (0.3, 0.001, 0.01, 0.1, 1)
    made = [found(config={"recipe": {"lr": lr}, "seed": 0}, id=str(lr)) for lr in rates]
    (table,) = shown(tmp_path / "s", made)
    assert layouts([table])[0][:2] == (("config.recipe.lr",), ())
    assert [row[0] for row in grids(table)[0].rows] == ["0.001", "0.01", "0.1", "0.3", "1"]


def test_a_value_in_both_configuration_and_protocol_becomes_only_one_axis(tmp_path: Path) -> None:
    """Both the configuration and the record's protocol have the value."""
    layers = ("penultimate", "layer4", "layer3", "layer3:pool", "layer2")
    made = [
        found(
            config={"protocol": {"layer": layer}, "seed": 0},
            protocol={**PROTOCOL, "layer": layer},
            id=layer,
        )
        for layer in layers
    ]
    (table,) = shown(tmp_path / "s", made)
    assert layouts([table])[0][:2] == (("protocol.layer",), ())
    assert sorted(row[0] for row in grids(table)[0].rows) == sorted(layers)
    for one in made:
        one["protocol"] = {**PROTOCOL, "layer": "penultimate"}
    (table,) = shown(tmp_path / "t", made)
    assert layouts([table])[0][:2] == (("config.protocol.layer",), ())


def test_tables_of_cells_without_retraining_show_detection_metrics(tmp_path: Path) -> None:
    (table,) = shown(tmp_path / "one", [found(retrain=False)])
    assert layouts([table])[0][:2] == (("trigger",), ())
    assert "Nat2" not in markdown(document(table))
    # Without a finished cell it is unknown whether networks are retrained.
    (table,) = shown(tmp_path / "none", [failed(record())])
    assert table.spec.report


@pytest.mark.parametrize("defenses", [("spectral",), DEFENSES])
def test_without_finished_cells_the_status_of_every_cell_is_shown(
    tmp_path: Path, defenses: tuple[str, ...]
) -> None:
    asked = [found(t, "bird", 0.1, d) for t in TRIGGERS[:5] for d in defenses]
    made = [failed(one) for one in asked[1:]]
    (table,) = shown(tmp_path / "s", made, asked)
    texts = [text for grid in grids(table) for row in grid.rows for text in row]
    width = len(layouts([table])[0][2])
    assert texts.count("failed: oom") == width * len(made)
    assert texts.count("missing") == width


# --- written files ------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["committed", "attacks", "defenses", "matrix"])
def case(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def folder(case: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sweeps in wide layouts, one of them committed, with failed and missing cells."""
    where = tmp_path_factory.mktemp("wide") / "s"
    if case == "committed":
        shutil.copytree(COMMITTED, where, ignore=shutil.ignore_patterns("tables", "index.html"))
        write_tables(where)
        return where
    asked = {
        "attacks": attacks(),
        "defenses": [found(t, "bird", 0.1, d, s) for t in ("pixel", "pattern") for d in DEFENSES
                     for s in range(3)],
        "matrix": [found(t, "bird", 0.1, d, retrain=False) for t in TRIGGERS for d in DEFENSES],
    }[case]  # fmt: skip
    made = [failed(one, "diverged: x") if n % 17 == 5 else one
            for n, one in enumerate(asked) if n % 19 != 7]  # fmt: skip
    made[0]["detection"] = None
    made[2]["asr1"] = None
    write_tables(write_sweep(where, made, asked))
    return where


def without_attack(done: list[dict[str, Any]], records: list[dict[str, Any]]) -> bool:
    """Whether no poisoned cell has an ASR1 significantly above the mean ASR1 of the clean networks:
    the Newcombe interval of the difference reaches 0."""
    names = ("dataset", "model", "recipe", "trigger", "target", "source", "protocol")
    test = {tuple(one["choices"][name] for name in names) for one in done}
    clean = [one["asr1"] for one in records
             if tuple(one["choices"][name] for name in names) in test
             and one["counts"].get("n_poisoned") == 0 and one["asr1"] is not None]  # fmt: skip
    rates = [(one["asr1"], one["counts"]["n_asr"]) for one in done if one["asr1"] is not None]
    poisoned = any(one["counts"]["n_poisoned"] for one in done)
    if not (clean and poisoned and any(n for _, n in rates)):
        return False
    mean = np.mean(clean)
    return not any(
        rate - mean > np.hypot(rate - interval(rate, n).low, interval(mean, n).high - mean)
        for rate, n in rates
        if n
    )


def interval(rate: float, n: int) -> Any:
    return binomtest(round(rate * n), n).proportion_ci(method="wilson")


def recorded(folder: Path) -> list[dict[str, Any]]:
    return [*raw_records(folder).values()]


HEADS = {
    measure.head: ("counts" if name in ("n_poisoned", "pois_left", "n_accused", "n_named") else
                   "detection" if name in DETECTION else "", name, measure.scale)
    for name, measure in MEASURE.items()
}  # fmt: skip


def value_text(cells: list[dict[str, Any]], head: str, asked: int) -> str:
    """A figure recomputed from raw records with NumPy and SciPy."""
    group, name, scale = HEADS[head]
    values = [((c[group] or {}) if group else c).get(name) for c in cells]
    known = [scale * value for value in values if value is not None]
    if not known:
        return "–"
    n, fixed = len(known), head == "#Pois" and len(set(known)) == 1
    digits = (0 if n == 1 or fixed else 1) if head.startswith("#") else 2 if scale == 100 else 3
    text = f"{np.mean(known):.{digits}f}"
    if n > 1 and not fixed:
        text += f" ± {stats.t.ppf(0.975, n - 1) * stats.sem(known):.{digits}f}"
    return text if n == asked else f"{text} (n={n})"


def test_every_number_shown_is_in_the_records(case: str, folder: Path) -> None:
    records, seen = recorded(folder), 0
    listed = json.loads((folder / "sweep.json").read_text())["asked"]
    for path in sorted((folder / "tables").glob("wide_*.md")):
        title = path.read_text().splitlines()[0].removeprefix("### ").split(" (1 of")[0]
        whose = re.search(r"are from cells with defense (\w+)", path.read_text())
        for row in side_by_side(path):
            fixed = {k.lower(): v for k, v in row.items() if k in ("Trigger", "Defense")}
            if whose:
                fixed["defense"] = whose[1]
            for head, text in row.items():
                if head.lower() in fixed or head == "Seeds":
                    continue
                name = next((h for h in HEADS if head == h or head.endswith(f" {h}")), title)
                column = head if name == title else head.removesuffix(name).strip()
                axis = "ratio" if column.endswith("%") else "trigger"
                chosen = fixed | ({axis: column} if column else {})
                mine, asked = ([
                    c for c in cells
                    if all((f"{100 * c['choices'][k]:g}%" if k == "ratio" else c["choices"][k]) == v
                           for k, v in chosen.items())
                ] for cells in (records, listed))  # fmt: skip
                done = [cell for cell in mine if cell["status"] == "done"]
                assert asked, chosen
                if done:
                    value = value_text(done, name, len(asked))
                    signed = (
                        value != NOTHING
                        and name in ("ASR1", "ASR2")
                        and without_attack(done, records)
                    )
                    assert bare(text) == value + " ‡" * signed, (path.name, chosen)
                else:
                    assert text == (mine[0]["status"] if mine else "missing")
                seen += 1
    assert seen == {"committed": 384, "attacks": 336, "defenses": 90, "matrix": 462}[case]


def test_a_sweep_writes_only_the_kinds_of_tables_for_which_it_has_records(folder: Path) -> None:
    kinds = {name.partition("_")[0] for name in contents(folder / "tables")}
    records = recorded(folder)
    expected = {"records.csv", "written.json", "wide"}
    if any(one["choices"]["defense"] == "random" for one in records):
        expected.add("compare")
    if any(one["nat2"] is not None for one in records):
        # The made-up cells include cells of the report, so its figures are shown, too.
        expected.add("table")
    assert kinds == expected


def test_the_page_shows_the_same_tables_as_the_written_files(folder: Path) -> None:
    text = (folder / "index.html").read_text()
    for table in SweepReport(read_sweep(folder)).shown:
        for grid in grids(table):
            for row in grid.rows:
                shown_row = "".join(f">{html.escape(cell)}</td>" for cell in row[:1])
                assert shown_row in text
            assert f"<h3>{html.escape(grid.title)}</h3>" in text
    assert ('<details id="compared">' in text) == ("random" in str(sorted(folder.iterdir())))


def test_every_note_is_on_the_page_exactly_once(folder: Path) -> None:
    text = (folder / "index.html").read_text().split('<section id="tables">')[1]
    text = html.unescape(text.split("</section>")[0])
    report = SweepReport.of(folder)
    notes = [note for table in report.shown for grid in grids(table) for note in grid.notes]
    assert len(set(notes)) < len(notes)
    for note in set(notes):
        assert text.count(f"<p>{note}</p>") == 1
    assert text.count("Other notes: see the tables above.") == len(
        [grid for table in report.shown for grid in grids(table) if grid.notes]
    ) - 1  # fmt: skip


def test_the_command_prints_the_same_tables_that_it_writes(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    print_tables(write_tables(folder))
    printed = parsed(capsys.readouterr().out)
    written = [parsed(path.read_text()) for path in (folder / "tables").glob("wide_*.md")]
    assert sorted(map(str, printed)) == sorted(str(t) for tables in written for t in tables)


@pytest.mark.skipif(not latex_with_booktabs(), reason="no pdflatex with booktabs here")
def test_the_latex_of_every_table_compiles(folder: Path, tmp_path: Path) -> None:
    paths = sorted((folder / "tables").glob("*.tex"))
    body = "".join(f"{path.read_text()}\\clearpage\n" for path in paths)
    head = "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\n"
    (tmp_path / "x.tex").write_text(f"{head}{body}\\end{{document}}\n")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape",
               "x.tex"]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    # Without the boxes that center them, TeX reports overfull tables: the text is 345 points wide.
    bare_body = body.replace("\\makebox[\\linewidth]{", "").replace("{tabular}}", "{tabular}")
    (tmp_path / "x.tex").write_text(f"{head}{bare_body}\\end{{document}}\n")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=60, check=False)
    over = [float(x) for x in re.findall(rb"Overfull .hbox .([\d.]+)pt", done.stdout)]
    assert done.returncode == 0
    assert max(over, default=0) < 614 - 345


# --- against the control ------------------------------------------------------------------------


def holm(values: list[float]) -> list[float]:
    """Holm's correction: each p times the number of p values at least as large, made monotone."""
    order = np.argsort(values)
    scaled = np.array(values)[order] * np.arange(len(values), 0, -1)
    adjusted = np.empty(len(values))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(scaled))
    return list(adjusted)


@pytest.fixture
def compared(tmp_path: Path) -> Path:
    """Six defenses, two triggers, four seeds; one failed cell, and one defense without
    detection."""
    made = [found(t, "bird", 0.1, d, s) for t in ("pixel", "pattern") for d in DEFENSES
            for s in range(4)]  # fmt: skip
    made[1] = failed(made[1])
    for one in made:
        if one["choices"]["defense"] == "none":
            one["detection"] = None
    folder = write_sweep(tmp_path / "s", made)
    write_tables(folder)
    return folder


def test_every_defense_is_compared_with_random(compared: Path) -> None:
    table = (compared / "tables" / "compare_random.csv").read_text()
    lines = list(csv.DictReader(table.splitlines()))
    records = [one for one in recorded(compared) if one["status"] == "done"]

    def value(trigger: str, defense: str, seed: int, name: str) -> float | None:
        group, key, scale = HEADS[MEASURE[name].head]
        for one in records:
            chosen = one["choices"]
            if (chosen["trigger"], chosen["defense"], chosen["seed"]) == (trigger, defense, seed):
                found = ((one[group] or {}) if group else one).get(key)
                return None if found is None else scale * found
        return None

    single = [line for line in lines if line["lines"] == "0"]
    for line in single:
        pairs = [
            (ours, base)
            for seed in range(4)
            if (ours := value(line["trigger"], line["side"], seed, line["measure"])) is not None
            and (base := value(line["trigger"], "random", seed, line["measure"])) is not None
        ]
        assert line["n"] == str(len(pairs))
        ours, base = np.array(pairs).T
        assert float(line["difference"]) == pytest.approx(np.mean(ours - base), abs=1e-9)
        if len(set(np.round(ours - base, 9))) > 1:
            assert float(line["p_t"]) == pytest.approx(stats.ttest_rel(ours, base).pvalue)
    # Five defenses, two triggers, four measures; without detection there is no AUROC.
    assert len(single) == 5 * 2 * 4 - 2
    tested = [line for line in lines if line["p_t"]]
    expected = holm([float(line["p_t"]) for line in tested])
    assert [float(line["p_holm"]) for line in tested] == pytest.approx(expected)
    text = (compared / "tables" / "compare_random.md").read_text()
    assert len(parsed(text)[0]) == len(lines)
    assert "failed: oom" in text


def test_the_comparison_with_the_random_control_is_collapsed_on_the_page(compared: Path) -> None:
    text = (compared / "index.html").read_text()
    part = text.split('<details id="compared">')[1].split("</details>")[0]
    rows = parsed((compared / "tables" / "compare_random.md").read_text())[0]
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>.*?</tr>", part)]
    assert [row for row in cells if row] == [list(map(html.escape, row.values())) for row in rows]


def test_a_long_comparison_with_the_random_control_is_summarized_on_the_page(
    tmp_path: Path,
) -> None:
    made = [found(t, "bird", 0.1, d, s) for t in TRIGGERS for d in DEFENSES for s in (0, 1)]
    folder = write_sweep(tmp_path / "s", made)
    write_tables(folder)
    part = (folder / "index.html").read_text().split('<details id="compared">')[1]
    part = part.split("</details>")[0]
    lines = list(csv.DictReader((folder / "tables/compare_random.csv").read_text().splitlines()))
    assert len(lines) == 5 * 4 * 15
    assert part.count("<tr>") == 1 + 5 * 4
    assert f"{5 * 4} of {len(lines)} lines" in part
    assert "tables/compare_random.html" in part


@pytest.mark.parametrize("defenses", [("random",), ("spectral", "none"), ("spectral", "random")])
def test_without_matching_cells_there_is_no_comparison_with_the_random_control(
    tmp_path: Path, defenses: tuple[str, ...]
) -> None:
    # `random` has another target, so no two cells differ only in the defense.
    made = [record(defense=d, target="dog" if d == "random" else "bird") for d in defenses]
    folder = write_sweep(tmp_path / "s", made)
    write_tables(folder)
    assert not list((folder / "tables").glob("compare_*"))
    assert 'id="compared"' not in (folder / "index.html").read_text()


def test_outdated_files_of_a_comparison_are_deleted(tmp_path: Path) -> None:
    made = [record(defense=d) for d in ("spectral", "random")]
    folder = write_sweep(tmp_path / "s", made)
    write_tables(folder)
    assert len(list((folder / "tables").glob("compare_random.*"))) == 4
    write_sweep(folder, [made[0], failed(made[1])])
    write_tables(folder)
    assert not list((folder / "tables").glob("compare_*"))


def test_unreadable_records_are_named_below_wide_tables(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "s", attacks())
    (folder / "stray").mkdir()
    (folder / "stray" / "record.json").write_text("{")
    tables = write_tables(folder)
    assert len(tables) == 2
    for table in tables:
        assert "Not in any table: stray (failed: damaged" in markdown(document(table))


def test_hostile_names_in_wide_tables_are_escaped(tmp_path: Path) -> None:
    both = [(name, other) for name in NAMES[:6] for other in NAMES[-5:]]
    made = [found(name, "bird", 0.1, choices={"defense": other}, id=f"c{n}", retrain=False)
            for n, (name, other) in enumerate(both)]  # fmt: skip
    folder = write_sweep(tmp_path / "deep" / "s", made)
    write_tables(folder)
    assert all(text.isascii() for name, text in contents(folder / "tables").items()
               if name.endswith(".tex"))  # fmt: skip
    inside = {path.parent for path in (tmp_path / "deep").rglob("*.md")}
    assert inside == {folder / "tables"}


def test_written_tables_show_the_published_values_next_to_those_of_the_sweep(
    tmp_path: Path,
) -> None:
    made = [record(*each, defense=d) for each in GRID for d in DEFENSES]
    folder = write_sweep(tmp_path / "s", made)
    assert all(not table.spec.report for table in write_tables(folder))
    paths = sorted((folder / "tables").glob("table_*.md"))
    assert [path.stem for path in paths] == ["table_pattern", "table_pixel"]
    assert all("reference and difference" in path.read_text() for path in paths)
    mine = [one for one in made if one["choices"]["trigger"] == "pixel"]
    first = parsed(paths[1].read_text())[0][0]
    assert bare(first["Nat2"]) == text_of(figures(mine[:1], "Nat2"), "Nat2", 1)
