"""What the tables of three committed sweeps said before there was one model of tables.

`tables.json` was written once, by `contents` of this file as it stood then, and is never written
again. Held are titles, heads, rows, notes and CSV columns, of the tables that a sweep is shown in,
of the report's layout, of a layout that is asked for, and of comparisons. Later columns may be
added to a CSV file and later notes below a table; what was there stays, in its order. Bold marks
are kept under "best", and the note that said how they were set: since then a paired test sets them,
see test_worth.py.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backdoor_lab.compare import compare_text
from backdoor_lab.compare.comparison import comparison_of
from backdoor_lab.compare.report import SweepReport
from backdoor_lab.results.sweeps import Sweep, read_sweep
from backdoor_lab.tables.layout import PivotSpec
from backdoor_lab.tables.markup import TextTable
from backdoor_lab.tables.pivot import PivotTable, pivot_cells
from backdoor_lab.tables.text import document
from backdoor_lab.tables.writers import sheet

ROOT = Path(__file__).resolve().parents[2] / "multirun_reports"
FILE = Path(__file__).with_name("tables.json")
ASKED = PivotSpec(("target", "ratio"), ("defense",), ("asr1", "asr2", "nat2", "pois_left", "auroc"))
LEFT_OPEN = {1: "failed: out of memory", 4: "missing", 5: "diverged: loss is NaN"}
"""Cells of the sweep of controls, by their place, that a fourth case takes for not done."""
BOLD = "Bold: "
"""How the note begins that says which figures are bold."""


def read(name: str) -> Sweep:
    """A committed sweep; of ``… with open cells`` some are as if they had not been done."""
    folder, _, opened = name.partition(" with ")
    sweep = read_sweep(ROOT / folder)
    for place, status in LEFT_OPEN.items() if opened else ():
        sweep.cells[place] = replace(sweep.cells[place], status=status, numbers={})
    return sweep


def contents(name: str) -> dict[str, Any]:
    """Everything that is held of one sweep, by what shows it."""
    sweep = read(name)
    report = SweepReport(sweep)
    tables = [*report.tables, *(each for each in report.shown if not each.spec.report)]
    named = {f"{_kind(table)} {table.slug}": document(table)
             for table in [*tables, *pivot_cells(sweep.cells, ASKED)]}  # fmt: skip
    comparisons = {"random": report.compared}
    if any(table.compared for table in report.tables):
        comparisons["reference"] = comparison_of([sweep], report=True, values="nat2,asr2")
    named |= {
        f"compare {other}": compare_text.document(found)
        for other, found in comparisons.items()
        if found is not None
    }
    return {
        name: {"grids": [*map(_grid, each.grids)], "csv": sheet(each)}
        for name, each in named.items()
    }


def _kind(table: PivotTable) -> str:
    return "table" if table.spec.report else "wide"


def _grid(grid: TextTable) -> dict[str, Any]:
    return {
        "title": grid.title, "over": grid.over, "head": grid.head, "left": grid.left,
        "rows": grid.rows, "notes": grid.notes, "best": sorted(map(list, grid.best)),
    }  # fmt: skip


KNOWN: dict[str, dict[str, Any]] = json.loads(FILE.read_text())
CASES = [(name, part) for name, found in KNOWN.items() for part in found]


@pytest.fixture(scope="module")
def computed() -> dict[str, dict[str, Any]]:
    return {name: contents(name) for name in KNOWN}


def test_each_sweep_has_the_tables_that_it_had(computed: dict[str, dict[str, Any]]) -> None:
    assert {name: list(found) for name, found in computed.items()} == {
        name: list(found) for name, found in KNOWN.items()
    }


@pytest.mark.parametrize(("name", "part"), CASES)
def test_text_of_a_table_is_what_it_was(
    computed: dict[str, dict[str, Any]], name: str, part: str
) -> None:
    before, now = KNOWN[name][part]["grids"], computed[name][part]["grids"]
    assert len(before) == len(now)
    for one, other in zip(before, now, strict=True):
        assert differing(one, other) == []


@pytest.mark.parametrize(("name", "part"), CASES)
def test_csv_of_a_table_has_every_column_that_it_had(
    computed: dict[str, dict[str, Any]], name: str, part: str
) -> None:
    assert list(csv_differences(KNOWN[name][part]["csv"], computed[name][part]["csv"])) == []


def test_a_changed_table_is_noticed() -> None:
    """A figure, a head, a note that is gone, and one that moved; a number and a column of a CSV."""
    known = KNOWN["demo/controls"]
    (one,) = next(iter(known.values()))["grids"]
    changes = {
        "rows": [["x", *one["rows"][0][1:]], *one["rows"][1:]], "head": one["head"][::-1],
        "notes": one["notes"][1:], "title": "",
    }  # fmt: skip
    assert all(differing(one, {**one, key: value}) == [key] for key, value in changes.items())
    assert differing(one, {**one, "notes": one["notes"][::-1]}) == ["notes"]
    assert differing(one, {**one, "notes": ["new", *one["notes"]]}) == []
    text = known["compare random"]["csv"]
    assert list(csv_differences(text, text)) == []
    assert list(csv_differences(text, text.replace("asr2", "asr1"))) != []
    assert list(csv_differences(text, text.replace(",p_t,", ",p_u,"))) != []
    assert list(csv_differences(text, "\n".join(text.splitlines()[:-1]))) != []


def differing(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The parts of a table in which `now` does not hold what `before` says. The sign of an attack
    that shows nothing is newer than the file."""
    now = now | {"rows": [[text.removesuffix(" ‡") for text in row] for row in now["rows"]]}
    wrong = [key for key in before if key not in ("notes", "best") and before[key] != now[key]]
    kept = [note for note in before["notes"] if not note.startswith(BOLD)]
    notes = iter(now["notes"])
    return wrong + ["notes"] * (not all(note in notes for note in kept))


def csv_differences(before: str, now: str) -> Iterator[str]:
    """What a CSV text has no longer: a column, their order, a line, a value."""
    first, second = (list(csv.reader(io.StringIO(text))) for text in (before, now))
    heads = iter(second[0])
    if not all(head in heads for head in first[0]):
        yield f"columns {first[0]} in {second[0]}"
        return
    if len(first) != len(second):
        yield f"{len(first)} lines, now {len(second)}"
        return
    for number, (line, other) in enumerate(zip(first[1:], second[1:], strict=True)):
        values = dict(zip(second[0], other, strict=True))
        for head, value in zip(first[0], line, strict=True):
            if not alike(value, values[head]):
                yield f"line {number}, {head}: {value}, now {values[head]}"


def alike(one: str, other: str) -> bool:
    """Whether two cells of a CSV file say the same; numbers but for the last binary digits."""
    if one == other:
        return True
    try:
        return math.isclose(float(one), float(other), rel_tol=1e-9, abs_tol=1e-9)
    except ValueError:
        return False
