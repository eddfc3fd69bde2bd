"""Every number in the written tables, recomputed from the JSON of the records with NumPy and SciPy,
without code of the package."""

from __future__ import annotations

import csv
import html
import json
import re
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from backdoor_lab.reports.__main__ import main
from backdoor_lab.results.artifact_reader import raw_records
from backdoor_lab.tables import reference
from tests.helpers.records import GRID, failed, record, write_sweep
from tests.helpers.tables import DIGITS, HEADS, bare, figures, parsed, side_by_side, text_of

COMMITTED = Path(__file__).resolve().parents[3] / "multirun_reports" / "demo" / "controls"
HIGHER = ("Nat2", "AUROC")


@pytest.fixture(scope="module", params=["committed", "made"])
def case(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def folder(case: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep with its default tables and tables of two other layouts. One case is a committed
    sweep, the other has failed and missing cells."""
    where = tmp_path_factory.mktemp("sweep") / "demo"
    if case == "committed":
        shutil.copytree(COMMITTED, where, ignore=shutil.ignore_patterns("tables"))
    else:
        cells = [c for c in GRID if c[1] != "horse"]
        names = ("spectral", "none", "oracle")
        asked = [record(*c, defense=d, seed=s) for c in cells for d in names for s in range(4)]
        made = [failed(m) if n % 11 == 3 else m for n, m in enumerate(asked) if n % 7]
        made[5]["detection"]["auroc"] = None
        write_sweep(where, made, asked)
    assert main([str(where), "rows=target,ratio", "columns=defense", "values=asr2,auroc"]) == 0
    assert main([str(where), "rows=defense", "columns=trigger,seed", "values=nat2,pois_left"]) == 0
    return where


@cache
def records(folder: Path) -> list[dict[str, Any]]:
    found = [*raw_records(folder).values()]
    return [each for each in found if each["status"] == "done"]


@cache
def listed(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "sweep.json").read_text())["asked"]
    return found


def percent(ratio: float) -> str:
    return f"{round(100 * ratio, 9):g}%"


def best(rows: list[tuple[str, list[dict[str, Any]]]], head: str) -> set[str]:
    """The name with the best mean, if a paired t test over common seeds separates it from the next.
    Controls that know the poison do not compete."""
    sign = 1 if head in HIGHER else -1
    known = {}
    for name, cells in rows:
        mine = {c["choices"]["seed"]: figures([c], head)[0] for c in cells if figures([c], head)}
        if mine and name not in ("oracle", "clean_data"):
            known[name] = mine
    ranked = sorted(known, key=lambda name: -sign * np.mean(list(known[name].values())))
    if len(ranked) < 2 or known[ranked[0]].keys() != known[ranked[1]].keys():
        return set()
    first, second = ([known[name][s] for s in sorted(known[name])] for name in ranked[:2])
    differences = np.round(np.subtract(first, second), 10)
    if len(set(differences)) < 2:
        return set()
    return {ranked[0]} if stats.ttest_1samp(differences, 0).pvalue < 0.05 else set()


def test_numbers_and_bold_marks_in_the_report_layout_equal_those_recomputed_from_records(
    case: str, folder: Path
) -> None:
    seen = 0
    for path in sorted((folder / "tables").glob("table_*.md")):
        trigger = path.stem.removeprefix("table_")
        table = parsed(path.read_text())[0]
        behind = {}
        for row in table:
            name = row.get("Defense", "spectral")
            mine = [
                r for r in records(folder)
                if r["choices"]["trigger"] == trigger and r["choices"]["target"] == row["Target"]
                and percent(r["choices"]["ratio"]) == row["Ratio"]
                and r["choices"]["defense"] == name
            ]  # fmt: skip
            behind[row["Target"], row["Ratio"], name] = mine
            assert row["Seeds"] == str(len(mine))
            for head in [h for h in row if h in HEADS]:
                assert bare(row[head]) == text_of(figures(mine, head), head, len(mine))
                seen += 1
        for head in ("Nat2", "ASR2", "#Pois Left"):
            for attack in {(row["Target"], row["Ratio"]) for row in table}:
                rows = [r for r in table if (r["Target"], r["Ratio"]) == attack]
                shown = [(r["Defense"], behind[*attack, r["Defense"]]) for r in rows]
                bold = {r["Defense"] for r in rows if r[head].startswith("**")}
                assert bold == best(shown, head), (attack, head)
    # Lines times columns.
    assert seen == {"committed": 4 * 6, "made": 8 * 3 * 6}[case]


@pytest.mark.parametrize("case", ["made"], indirect=True)
def test_differences_from_published_values_equal_those_recomputed_from_the_records(
    folder: Path,
) -> None:
    seen = 0
    for path in sorted((folder / "tables").glob("table_*.md")):
        trigger = path.stem.removeprefix("table_")
        for row in [row for table in parsed(path.read_text())[1:] for row in table]:
            known = reference.lookup(trigger, row["Target"], float(row["Ratio"][:-1]) / 100)
            mine = [
                r for r in records(folder)
                if [r["choices"][k] for k in ("trigger", "target", "defense")]
                == [trigger, row["Target"], row["Defense"]]
                and percent(r["choices"]["ratio"]) == row["Ratio"]
            ]  # fmt: skip
            assert known is not None
            for head, (_, name, _) in HEADS.items():
                if name not in known:
                    continue
                images = head.startswith("#")
                assert row[f"{head} ref"] == f"{known[name]:.{0 if images else 2}f}"
                digits = 0 if images and len(mine) == 1 else DIGITS.get(head, 2)
                away = round(np.mean(figures(mine, head)) - known[name], digits) + 0.0
                assert row[f"{head} diff"] == f"{away:+.{digits}f}"
                seen += 1
    assert seen == 8 * 5


def places(folder: Path) -> list[tuple[dict[str, Any], str, str, str]]:
    """For every figure of the other layouts: the choices of its cells, measure, text and file."""
    found = []
    for path in sorted((folder / "tables").glob("wide_*.md")):
        trigger = path.stem.rpartition("_")[2]
        for row in side_by_side(path):
            fixed = {k.lower(): v for k, v in row.items() if k in ("Target", "Ratio", "Defense")}
            for head, text in row.items():
                measure = next((h for h in sorted(HEADS, key=len) if head.endswith(f" {h}")), None)
                if measure is None:
                    continue
                column = head.removesuffix(f" {measure}")
                if ", seed " in column:
                    where, seed = column.split(", seed ")
                    chosen: dict[str, Any] = {"trigger": where, "seed": int(seed)}
                else:
                    chosen = {"trigger": trigger, "defense": column}
                found.append((fixed | chosen, measure, text, path.stem))
    return found


def matching(folder: Path, chosen: dict[str, Any], done: bool) -> list[dict[str, Any]]:
    """The records with these choices, or the requested cells listed in sweep.json."""
    cells = records(folder) if done else listed(folder)
    shown = [dict(c["choices"], ratio=percent(c["choices"]["ratio"])) for c in cells]
    return [c for c, s in zip(cells, shown, strict=True)
            if all(s[k] == v for k, v in chosen.items())]  # fmt: skip


def status_of(folder: Path, chosen: dict[str, Any]) -> str:
    """The status of the only cell with these choices, which is not done."""
    (one,) = matching(folder, chosen, done=False)
    statuses: dict[str, str] = {r["id"]: r["status"] for r in raw_records(folder).values()}
    return statuses.get(one["id"], "missing")


def test_numbers_in_requested_layouts_equal_those_recomputed_from_the_records(
    case: str, folder: Path
) -> None:
    seen = 0
    for chosen, measure, text, name in places(folder):
        if "trigger.seed" in name and "target" not in chosen:
            # This layout has a table per target and ratio, named in the file name.
            continue
        asked = len(matching(folder, chosen, done=False))
        mine = matching(folder, chosen, done=True)
        assert mine
        assert bare(text) == text_of(figures(mine, measure), measure, asked)
        seen += 1
    # Lines, defenses, measures, files.
    assert seen == {"committed": 1 * 4 * 2, "made": 4 * 3 * 2 * 2}[case]


def test_a_table_with_one_column_per_seed_shows_the_values_of_single_cells(
    case: str, folder: Path
) -> None:
    paths = sorted((folder / "tables").glob("wide_defense_trigger.seed_*.csv"))
    seen = 0
    for path in paths:
        table = side_by_side(path.with_suffix(".md"))
        lines = csv.DictReader(path.read_text().splitlines())
        for row, shown in zip(lines, table, strict=True):
            fixed = {k: row[k] for k in ("target", "ratio", "defense") if k in row}
            for name in [n for n in row if n.endswith((" nat2", " pois_left"))]:
                column, _, measure = name.rpartition(" ")
                trigger, _, seed = column.partition(", seed ")
                chosen = fixed | {"trigger": trigger, "seed": int(seed)}
                mine = matching(folder, chosen, done=True)
                head = {"nat2": "Nat2", "pois_left": "#Pois Left"}[measure]
                expected = figures(mine, head)
                assert [float(row[name])] == pytest.approx(expected) if expected else not row[name]
                assert row[f"{name}_n"] == str(len(expected))
                text = bare(shown[f"{column} {head}"])
                assert text == (text_of(expected, head, 1) if mine else status_of(folder, chosen))
                assert row[f"{column} done"] == str(len(mine))
                seen += 1
    # Defenses, triggers with seed, measures, files.
    assert seen == {"committed": 4 * 3 * 2, "made": 3 * 8 * 2 * 4}[case]


def cells_in_latex(text: str) -> list[list[str]]:
    lines = [line for part in text.split(r"\midrule")[1:]
             for line in part.split(r"\bottomrule")[0].strip().splitlines()]  # fmt: skip
    back = {r"\%": "%", r"$\pm$": "±", r"\#": "#", r"\_": "_", "--": "–"}
    rows = []
    for line in lines:
        text = line.removesuffix(r"\\")
        for escaped, plain in back.items():
            text = text.replace(escaped, plain)
        text = re.sub(r"\\textbf\{(.*?)\}", r"\1", text)
        rows.append([cell.strip() for cell in text.split(" & ")])
    return rows


def cells_in_html(text: str) -> list[list[str]]:
    rows = re.findall(r"<tr>(.*?)</tr>", text)
    found = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in rows]
    return [[html.unescape(cell) for cell in row] for row in found if row]


def test_every_file_format_shows_the_same_values(folder: Path) -> None:
    paths = sorted((folder / "tables").glob("*.md"))
    assert paths
    for path in paths:
        rows = [[*map(bare, row.values())] for table in parsed(path.read_text()) for row in table]
        assert cells_in_html(path.with_suffix(".html").read_text()) == rows
        assert cells_in_latex(path.with_suffix(".tex").read_text()) == rows
        bold = path.read_text().count("**") // 2
        assert path.with_suffix(".tex").read_text().count(r"\textbf{") == bold
        assert path.with_suffix(".html").read_text().count('class="best"') == bold


def test_numbers_in_csv_tables_equal_those_recomputed_from_the_records(folder: Path) -> None:
    paths = sorted((folder / "tables").glob("table_*.csv"))
    assert paths
    for path in paths:
        for row in csv.DictReader(path.read_text().splitlines()):
            chosen = {k: row[k] for k in ("trigger", "target", "ratio", "defense")}
            mine = matching(folder, chosen, done=True)
            for head, (_, name, _) in HEADS.items():
                values = figures(mine, head)
                if name not in row:
                    continue
                assert row[f"{name}_n"] == str(len(values))
                assert float(row[name]) == pytest.approx(np.mean(values))
                if len(values) > 1:
                    half = stats.sem(values) * stats.t.ppf(0.975, len(values) - 1)
                    assert float(row[f"{name}_ci95"]) == pytest.approx(half, abs=1e-9)
                    assert float(row[f"{name}_std"]) == pytest.approx(np.std(values, ddof=1))
