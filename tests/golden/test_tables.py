"""The tables of three committed sweeps as recorded before all tables shared one model.

`tables.json` was written once, by `contents` of this file at that time, and is never rewritten.
It holds titles, headings, rows, notes and CSV columns of a sweep's default tables, of the report's
layout, of a requested layout, and of comparisons. CSV files may gain columns and tables may gain
notes; what was there stays, in its order. "best" holds the bold marks and their note of that time;
now a paired test decides them, see test_worth.py.
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
"""Cells of the controls sweep, by position, that are unfinished in a fourth case."""
BOLD = "Bold: "
"""The beginning of the note on bold figures."""


def read(name: str) -> Sweep:
    """A committed sweep; in ``… with open cells`` some cells are marked as unfinished."""
    folder, _, opened = name.partition(" with ")
    sweep = read_sweep(ROOT / folder)
    for place, status in LEFT_OPEN.items() if opened else ():
        sweep.cells[place] = replace(sweep.cells[place], status=status, numbers={})
    return sweep


def contents(name: str) -> dict[str, Any]:
    """Everything recorded of one sweep, by its table."""
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


def test_every_sweep_still_has_its_tables(computed: dict[str, dict[str, Any]]) -> None:
    assert {name: list(found) for name, found in computed.items()} == {
        name: list(found) for name, found in KNOWN.items()
    }


@pytest.mark.parametrize(("name", "part"), CASES)
def test_the_text_of_every_table_is_unchanged(
    computed: dict[str, dict[str, Any]], name: str, part: str
) -> None:
    before, now = KNOWN[name][part]["grids"], computed[name][part]["grids"]
    assert len(before) == len(now)
    for one, other in zip(before, now, strict=True):
        assert differing(one, other) == []


@pytest.mark.parametrize(("name", "part"), CASES)
def test_the_csv_of_every_table_still_has_its_columns_and_values(
    computed: dict[str, dict[str, Any]], name: str, part: str
) -> None:
    assert list(csv_differences(KNOWN[name][part]["csv"], computed[name][part]["csv"])) == []


def test_a_changed_table_is_detected() -> None:
    """A figure, a heading, a missing note, a moved note; a number and a column in a CSV file."""
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
    """The parts of a table in which `now` differs from `before`. The mark for a missing attack was
    added after the recording."""
    now = now | {"rows": [[text.removesuffix(" ‡") for text in row] for row in now["rows"]]}
    wrong = [key for key in before if key not in ("notes", "best") and before[key] != now[key]]
    kept = [note for note in before["notes"] if not note.startswith(BOLD)]
    notes = iter(now["notes"])
    return wrong + ["notes"] * (not all(note in notes for note in kept))


def csv_differences(before: str, now: str) -> Iterator[str]:
    """What a CSV text has lost: a column, the column order, a line, a value."""
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
    """Whether two CSV cells are equal, numbers up to the last binary digits."""
    if one == other:
        return True
    try:
        return math.isclose(float(one), float(other), rel_tol=1e-9, abs_tol=1e-9)
    except ValueError:
        return False
