"""README's results are those of the records that it links: every figure of the tables of its
section "Results", of the readings of the report, and of where the filter looks, beside what the
committed records say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from backdoor_lab.reports import reference

ROOT = Path(__file__).resolve().parents[2]
Table = tuple[list[str], list[str], list[list[str]]]
KEYS = ("Protocol", "Trigger", "Target", "Ratio", "Seed", "Layer", "Defense")
LOOKS = re.compile(r"(\w+) (\d+%) → (\w+) \((\d+), ASR1 (\d+)\)")
RECKONED = {"`random` leaves"}
DIGITS = {"#Pois": 0, "Removed": 0, "Nat1": 2, "ASR1": 2, "AUROC": 3, "#Pois Left": 0, "Nat2": 2,
          "ASR2": 2}  # fmt: skip
REFERENCE = {"Nat1": "nat1", "ASR1": "asr1", "#Pois Left": "pois_left",
             "Nat2": "nat2", "ASR2": "asr2"}  # fmt: skip


def _section(heading: str) -> list[Table]:
    """The tables of a section: sweeps linked in the text above, columns, rows."""
    text = (ROOT / "README.md").read_text().split(f"\n{heading}")[1]
    blocks = re.split(r"(?m)^((?:\|.*\n)+)", re.split(r"\n##+ ", text)[0])
    found = []
    for above, table in zip(blocks[::2], blocks[1::2], strict=False):
        sweeps = re.findall(r"\]\(multirun_reports/(\w+)\)", above)
        head, _, *rows = ([c.strip() for c in line.split("|")[1:-1]] for line in table.splitlines())
        found.append((sweeps, head, rows))
    return found


def _records(sweeps: list[str]) -> list[dict[str, Any]]:
    paths = [p for name in sweeps for p in (ROOT / "multirun_reports" / name).glob("*/record.json")]
    return [json.loads(path.read_text()) for path in paths]


def _key(record: dict[str, Any], column: str) -> str:
    if column == "Layer":
        return str(record["config"]["protocol"]["layer"])
    value = record["choices"][column.lower()]
    return f"{100 * value:g}%" if column == "Ratio" else str(value)


def _value(record: dict[str, Any], column: str) -> float:
    counts, detection = record["counts"], record["detection"] or {}
    said = {"#Pois": counts["n_poisoned"], "#Pois Left": counts["pois_left"],
            "Removed": counts["n_removed"],
            "AUROC": detection.get("auroc")}  # fmt: skip
    return said[column] if column in said else 100 * record[column.lower()]


def _text(values: list[float], column: str) -> str:
    if len(values) == 1 or column == "#Pois":
        return f"{values[0]:.{DIGITS[column]}f}"
    digits = max(DIGITS[column], 1)
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{np.mean(values):.{digits}f} ± {half:.{digits}f}"


LOOK = _section("### Where the filter looks")
LAYERS = [table for table in LOOK if table[1][0] == "`defense`"]
TABLES = [
    *_section("## Results\n"), *_section("### Which reading "),
    *(table for table in LOOK if "ASR2" in table[1]),
]  # fmt: skip


@pytest.mark.parametrize("table", TABLES, ids=[" ".join(t[0]) for t in TABLES])
def test_every_figure_of_the_results_is_that_of_its_records(
    table: Table,
) -> None:
    sweeps, columns, rows = table
    plain = "Defense" not in columns
    records = [r for r in _records(sweeps) if not plain or r["choices"]["defense"] == "spectral"]
    assert len(rows) > 3
    assert set(columns) <= {*KEYS, *DIGITS, *RECKONED}
    keys = [c for c in columns if c in KEYS]
    for row in rows:
        line = dict(zip(columns, row, strict=True))
        told = {c: line[c].strip("`") for c in keys if line[c] != "any"}
        cells = [r for r in records if all(_key(r, c) == text for c, text in told.items())]
        if len(told) < len(keys):
            cells = [r for r in cells if _key(r, "Layer") == _key(cells[0], "Layer")]
        seeds = [r["choices"]["seed"] for r in cells]
        assert cells, row
        assert len(seeds) == len(set(seeds)), row
        for column in set(columns) - set(keys) - RECKONED:
            figure = re.sub(r" \(.*\)", "", line[column])
            assert figure == _text([_value(r, column) for r in cells], column), (row, column)


def test_the_report_stands_in_brackets_and_no_cell_is_missing() -> None:
    _, columns, rows = TABLES[0]
    assert len(rows) == len({tuple(row[:3]) for row in rows}) == 12
    for row in rows:
        line = dict(zip(columns, row, strict=True))
        known = reference.lookup(line["Trigger"], line["Target"], float(line["Ratio"][:-1]) / 100)
        assert known is not None
        for column, name in REFERENCE.items():
            digits = DIGITS[column]
            assert line[column].endswith(f" ({known[name]:.{digits}f})"), (row, column)


@pytest.mark.parametrize("table", LAYERS, ids=[" ".join(t[0]) for t in LAYERS])
def test_every_layer_leaves_what_its_records_say(table: Table) -> None:
    sweeps, (_, _, *heads), rows = table
    records = {
        (*(_key(r, c) for c in ("Defense", "Layer", "Trigger", "Ratio", "Target")),): r
        for r in _records(sweeps)
    }
    assert len(heads) > 2
    assert len(rows) > 3
    for defense, layer, *places in rows:
        for head, place in zip(heads, places, strict=True):
            found = LOOKS.fullmatch(head)
            assert found, head
            trigger, ratio, target, poisoned, asr = found.groups()
            record = records[defense.strip("`"), layer.strip("`"), trigger, ratio, target]
            assert record["counts"]["n_poisoned"] == int(poisoned)
            assert f"{100 * record['asr1']:.0f}" == asr
            left, auroc = record["counts"]["pois_left"], record["detection"]["auroc"]
            assert place == f"{left} ({auroc:.2f})", (defense, layer, head)
