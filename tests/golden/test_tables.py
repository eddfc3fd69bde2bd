"""The tables of three committed sweeps, compared with those recorded in `tables.json`.

The file was written once, before all tables shared one model, and is never rewritten. It holds the
titles, headings, rows, notes and CSV columns of a sweep's default tables, of the report's layout,
of a requested layout, and of comparisons. CSV files may gain columns and tables may gain notes, but
everything recorded must remain in its order. "best" holds the recorded bold marks and their note.
Now a paired test decides which cells are bold: see test_worth.py.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Iterator
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
from backdoor_lab.tables.notes import FEWER
from backdoor_lab.tables.pivot import PivotTable, pivot_cells
from backdoor_lab.tables.text import document
from backdoor_lab.tables.writers import sheet

ROOT = Path(__file__).resolve().parents[2] / "multirun_reports"
FILE = Path(__file__).with_name("tables.json")
ASKED = PivotSpec(("target", "ratio"), ("defense",), ("asr1", "asr2", "nat2", "pois_left", "auroc"))
RENAMED = {
    "labels": "label_mode", "covers": "cover_rate", "eligible": "poison_from",
    "inject": "placement", "stamp": "apply_trigger", "holdout": "clean_holdout",
    "classes": "filter_scope", "budget": "removal_budget", "budget_cap": "max_removed",
    "centred": "center",
}  # fmt: skip
"""Protocol keys as recorded in the file, and their names since 0.2.0."""
REWORDED = {
    "p, two-sided: the paired t test; Holm's correction of it over the (.*) t tests of this table, "
    "significant below 0.05; the exact sign test and the exact Wilcoxon signed-rank test, zeros "
    "left out.":
    r"All p values are two-sided. p (t): paired t test. p (Holm): the same, corrected by Holm's "
    r"method for the \1 t tests of this table; significant below 0.05. p (sign), p (Wilcoxon): "
    r"exact sign test and exact Wilcoxon signed-rank test, without pairs that differ by zero.",
    "With (.*) pairs of a line neither exact test can fall below (.*): the t test alone can tell "
    "there.":
    r"With \1 pairs per line, the p values of the two exact tests are at least \2, so only the t "
    r"test can be significant there.",
    "so that no t test is defined": "so the t test is undefined",
    "Where there is one pair there is no interval and no test; more seeds give both.":
    "A line of one pair has no interval and no test; run more seeds to get both.",
    "all: over the lines of one measure, each line's mean counted once; its interval tells how the "
    "difference varies from line to line of this grid. Its p values take the lines for "
    "independent: where lines share networks, images or seeds they say too much.":
    "all: mean over the lines of one measure, in which each line counts once; its interval shows "
    "how much the difference varies between lines. Its p values assume independent lines, so they "
    "are too small where lines share networks, images or seeds.",
    "The report gives one run for each cell": "The published report gives one run per cell",
    "Within pairs differs: ": "The two cells of a pair also differ in: ",
    "n= where a figure rests on fewer seeds": "n= marks figures from fewer seeds",
    "An empty place: (.*) A dash: ": r"Empty: \1 Dash: ",
    "the report's figures (.*) are CIFAR-10 with ResNet18; diff: ours minus theirs,":
    r"the figures of the published report \1 are for CIFAR-10 with ResNet18; diff: our value "
    r"minus the report's,",
    "the report says of its own runs that they (.*); its tables do not say which":
    r"the authors of the published report \1; their tables do not say in which runs",
    "Ours is (.*): this compares the shape and is no reproduction":
    r"This sweep used \1: the comparison shows trends and is not a reproduction",
    "the interval is of the mean": "the interval is that of the mean",
    "images that the defense left": "images not removed by the defense",
    "Without a partner that is done: ":
    "Not compared, because there is no completed cell to compare them with: ",
    "Before the defense a network is the same whatever the defense; these are (.*)'s cells.":
    r"Figures before the defense do not depend on it. Those shown are from cells with defense \1.",
    "also where nothing was removed: the retraining draws its own seed .retrain_seed=same takes "
    "that of the first training":
    "even where nothing was removed, because retraining uses another seed (retrain_seed=same uses "
    "the seed of the first training",
    "clean test images, ASR: (.*), both in %; 1 before the defense,":
    r"clean test images. ASR: \1. Both are in %; 1 is before the defense,",
    r"(?<=2 after it\. )#Pois: poisoned training images":
    "#Pois: poisoned training images; #Pois Left: those not removed by the defense",
}  # fmt: skip
"""Patterns of notes as recorded in the file, and their current wording."""
LEFT_OPEN = {1: "failed: out of memory", 4: "missing", 5: "diverged: loss is NaN"}
"""Cells of the controls sweep, by position, that are unfinished in a fourth case."""
PROTOCOL = "protocol."
BOLD = "Bold: "
"""The beginning of the note on bold figures."""


def read(name: str) -> Sweep:
    """Reads a committed sweep. If the name ends in ``with open cells``, some cells are marked as
    unfinished."""
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


def renamed(text: str) -> str:
    """A recorded text in current terms: with the protocol keys and the choice that 0.2.0 renamed,
    and with the present wording of notes."""
    for old, new in REWORDED.items():
        text = re.sub(old, new, text)
    keys = "|".join(sorted(RENAMED, key=len, reverse=True))
    text = re.sub(rf"\bprotocol\.({keys})\b", lambda found: f"protocol.{RENAMED[found[1]]}", text)
    if text.startswith("Protocol "):
        text = re.sub(rf"\b({keys})=", lambda found: f"{RENAMED[found[1]]}=", text)
    text = re.sub(r"(?<=apply_trigger=)(before|after)\b", r"\1_augmentation", text)
    text = text.replace("config.code.stages.material", "config.code.stages.context")
    return text.replace("spectral_uncentred", "spectral_uncentered")


def parts(text: str) -> list[str]:
    """The parts of a title or note. Values of a protocol are sorted, because they are listed in the
    order of their keys and keys were renamed. The hash in a cell's id is omitted, because renaming
    a key changes it. The sentence `FEWER` is omitted, because it now depends on the values (see
    test_layout.py)."""
    text = text.removesuffix(FEWER)
    found = re.split(r"[,;:] ", re.sub(r"(?<=-s\d)-[0-9a-f]{10}\b", "", text).rstrip("."))
    return sorted(found) if re.search(rf"\b({'|'.join(RENAMED.values())})\b", text) else found


def today(value: Any) -> Any:
    """A recorded value with `renamed` applied to every text in it except the keys of mappings."""
    if isinstance(value, dict):
        return {key: today(each) for key, each in value.items()}
    if isinstance(value, list):
        return [*map(today, value)]
    return renamed(value) if isinstance(value, str) else value


KNOWN: dict[str, dict[str, Any]] = today(json.loads(FILE.read_text()))
CASES = [(name, part) for name, found in KNOWN.items() for part in found]


@pytest.fixture(scope="module")
def computed() -> dict[str, dict[str, Any]]:
    return {name: contents(name) for name in KNOWN}


def at_its_place(found: dict[str, dict[str, Any]], name: str, part: str) -> Any:
    """The current table at the position that `part` has in the file."""
    return [*found[name].values()][list(KNOWN[name]).index(part)]


def test_no_table_is_added_removed_or_reordered(computed: dict[str, dict[str, Any]]) -> None:
    """The order of the tables is unchanged. Their file names are unchanged except for the order of
    the values in a name."""

    def words(names: Iterable[str]) -> list[list[str]]:
        return [sorted(re.sub(r"-[0-9a-f]{8}$", "", name).split("-")) for name in names]

    assert {name: words(found) for name, found in computed.items()} == {
        name: words(found) for name, found in KNOWN.items()
    }


@pytest.mark.parametrize(("name", "part"), CASES)
def test_the_text_of_every_table_is_unchanged(
    computed: dict[str, dict[str, Any]], name: str, part: str
) -> None:
    before, now = KNOWN[name][part]["grids"], at_its_place(computed, name, part)["grids"]
    assert len(before) == len(now)
    for one, other in zip(before, now, strict=True):
        assert differing(one, other) == []


@pytest.mark.parametrize(("name", "part"), CASES)
def test_the_csv_columns_and_values_of_every_table_are_unchanged(
    computed: dict[str, dict[str, Any]], name: str, part: str
) -> None:
    assert (
        list(csv_differences(KNOWN[name][part]["csv"], at_its_place(computed, name, part)["csv"]))
        == []
    )


def test_a_changed_table_is_detected() -> None:
    """In a table, a value, the headings, the title or a note is changed. In a CSV file, a measure
    is changed, a column is repeated or renamed, or a line is removed."""
    known = KNOWN["demo/controls"]
    (one,) = next(iter(known.values()))["grids"]
    changes = {
        "rows": [["x", *one["rows"][0][1:]], *one["rows"][1:]], "head": one["head"][::-1],
        "notes": one["notes"][1:], "title": "",
    }  # fmt: skip
    assert all(differing(one, {**one, key: value}) == [key] for key, value in changes.items())
    assert differing(one, {**one, "notes": one["notes"][::-1]}) == ["notes"]
    assert differing(one, {**one, "notes": ["new", *one["notes"]]}) == []
    swapped = [note.replace("Nat:", "*").replace("ASR:", "Nat:").replace("*", "ASR:")
               for note in one["notes"]]  # fmt: skip
    assert differing(one, {**one, "notes": swapped}) == ["notes"]
    text = known["compare random"]["csv"]
    assert list(csv_differences(text, text)) == []
    assert list(csv_differences(text, text.replace("asr2", "asr1"))) != []
    assert list(csv_differences(text, re.sub(r"(?m)$(?!\Z)", ",side", text))) != []
    assert list(csv_differences(text, text.replace(",p_t,", ",p_u,"))) != []
    assert list(csv_differences(text, "\n".join(text.splitlines()[:-1]))) != []


def differing(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The parts of a table in which `now` differs from `before`. The mark for a missing attack, and
    the word "trigger" in titles, were added after the recording."""
    now = now | {"rows": [[text.removesuffix(" ‡") for text in row] for row in now["rows"]]}
    apart = ("notes", "best", "title")
    wrong = [key for key in before if key not in apart and before[key] != now[key]]
    kept = [parts(note) for note in before["notes"] if not note.startswith(BOLD)]
    notes = map(parts, now["notes"])
    title = now["title"].replace("trigger ", "")
    wrong += ["title"] * (parts(before["title"]) != parts(title))
    return wrong + ["notes"] * (not all(note in notes for note in kept))


def csv_differences(before: str, now: str) -> Iterator[str]:
    """Lists what a CSV text has lost: columns, their order, lines or values."""
    first, second = (list(csv.reader(io.StringIO(text))) for text in (before, now))
    if len(set(second[0])) < len(second[0]):
        yield f"columns twice in {second[0]}"
        return
    heads = iter(second[0])
    # The columns of the protocol are in the order of its keys.
    protocol, others = (
        {h for h in first[0] if h.startswith(PROTOCOL) is on} for on in (True, False)
    )
    if not (
        protocol <= set(second[0]) and all(head in heads for head in first[0] if head in others)
    ):
        yield f"columns {first[0]} in {second[0]}"
        return
    if len(first) != len(second):
        yield f"{len(first)} lines, now {len(second)}"
        return
    for number, (line, other) in enumerate(zip(first[1:], second[1:], strict=True)):
        values = dict(zip(second[0], other, strict=True))
        for head, value in zip(first[0], line, strict=True):
            known = value + "_augmentation" * (head == f"{PROTOCOL}apply_trigger")
            if not alike(known, values[head]):
                yield f"line {number}, {head}: {value}, now {values[head]}"


def alike(one: str, other: str) -> bool:
    """Whether two CSV cells are equal. Numbers may differ in the last binary digits."""
    if one == other:
        return True
    try:
        return math.isclose(float(one), float(other), rel_tol=1e-9, abs_tol=1e-9)
    except ValueError:
        return False
