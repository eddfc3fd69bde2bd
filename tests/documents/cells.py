"""Reads the cells of committed sweeps, with the names and the units that the documents use."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from scipy import stats

from backdoor_lab.results.frozen import frozen_lines
from tests.documents.markers import markdown

SWEEPS = Path(__file__).resolve().parents[2] / "multirun_reports"
DIGITS = {"#Pois": 0, "Removed": 0, "Nat1": 2, "ASR1": 2, "AUROC": 3, "#Pois Left": 0, "Nat2": 2,
          "ASR2": 2}  # fmt: skip
SHARES = ("Nat1", "ASR1", "Nat2", "ASR2")
CHOICES = ("Trigger", "Source", "Target", "Seed", "Protocol", "Defense", "Recipe")

#: A record, and what documents show of it by column: shares in %, and ratios as text.
Cell: TypeAlias = dict[str, Any]


def cells(*sweeps: str, **wanted: Any) -> list[Cell]:
    """The cells of `sweeps` (folders under multirun_reports) whose choices match `wanted`, in the
    order of the sweeps: `cells("demo/controls", defense="random")`. Ratios are given as text
    ("10%")."""
    found = [cell for sweep in sweeps for cell in kept(sweep)]
    asked = {name.capitalize(): value for name, value in wanted.items()}
    return [c for c in found if all(c[name] == value for name, value in asked.items())]


def the(*sweeps: str, **wanted: Any) -> Cell:
    """The cell of `sweeps` whose choices match `wanted`. There must be exactly one."""
    (cell,) = cells(*sweeps, **wanted)
    return cell


@functools.cache
def kept(sweep: str) -> list[Cell]:
    """All cells of a sweep, in its order."""
    return [_cell(json.loads(line)) for line in frozen_lines(SWEEPS / sweep)]


def _cell(record: dict[str, Any]) -> Cell:
    choices, counts = record["choices"], record["counts"]
    shares = {name: record.get(name.lower()) for name in SHARES}
    return {
        **{name: choices.get(name.lower()) for name in CHOICES},
        "Ratio": f"{100 * choices['ratio']:g}%",
        "Layer": record["config"]["protocol"]["layer"],
        "#Pois": counts["n_poisoned"],
        "Removed": counts["n_removed"],
        "#Pois Left": counts["pois_left"],
        "AUROC": (record["detection"] or {}).get("auroc"),
        **{name: None if value is None else 100 * value for name, value in shares.items()},
        "record": record,
    }


def sorted_by(found: Iterable[Cell], **orders: Sequence[Any]) -> list[Cell]:
    """Sort cells. For each column, `orders` lists its values in the wanted order; the first column
    has priority. Cells that are equal in all of these columns keep their order."""
    return sorted(
        found, key=lambda c: [order.index(c[n.capitalize()]) for n, order in orders.items()]
    )


def figure(value: float | None, column: str, digits: int | None = None) -> str:
    """Format a number with the usual number of decimals of its column, or with `digits` decimals.
    None gives an empty string."""
    return "" if value is None else f"{value:.{DIGITS[column] if digits is None else digits}f}"


def mean(found: Sequence[Cell], column: str, digits: int | None = None) -> str:
    assert found, column
    return figure(float(np.mean([cell[column] for cell in found])), column, digits)


def interval(found: Sequence[Cell], column: str) -> str:
    """Format the mean over seeds and half of its 95 % interval (Student t)."""
    assert len({cell["Seed"] for cell in found}) == len(found) > 1
    values = [cell[column] for cell in found]
    if column == "#Pois":
        return figure(values[0], column)
    digits = max(DIGITS[column], 1)
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{np.mean(values):.{digits}f} ± {half:.{digits}f}"


def spread(found: Sequence[Cell], column: str, digits: int) -> str:
    """Format the mean over seeds and, if values differ, the lowest and the highest in
    parentheses."""
    assert len({cell["Seed"] for cell in found}) == len(found) > 1
    values = [cell[column] for cell in found]
    if values[0] is None:
        return ""
    middle, low, high = (f"{f(values):.{digits}f}" for f in (np.mean, np.min, np.max))
    return middle if low == high or digits == 3 else f"{middle} ({low}–{high})"


def listed(found: Sequence[Cell], *columns: str, code: Sequence[str] = ()) -> str:
    """A table with one line per cell. The values of the columns in `code` are formatted as code."""

    def text(cell: Cell, column: str) -> str:
        if column in DIGITS:
            return figure(cell[column], column)
        return f"`{cell[column]}`" if column in code else str(cell[column])

    return markdown(columns, [[text(cell, column) for column in columns] for cell in found])
