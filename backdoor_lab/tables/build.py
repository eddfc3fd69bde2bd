"""Cells to tables: pandas holds the tidy frame and takes means and deviations over seeds."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from backdoor_lab.analysis.intervals import half_width
from backdoor_lab.core.checks import is_number
from backdoor_lab.results.measures import UNDER
from backdoor_lab.results.records import CHOICES, COUNTS, DETECTION, DONE, FIGURES, WORTH, Cell
from backdoor_lab.results.sweeps import Sweep
from backdoor_lab.results.values import ratio_words
from backdoor_lab.tables import reference
from backdoor_lab.tables.layout import Group, Key, split
from backdoor_lab.tables.notes import clean_images, notes_of
from backdoor_lab.tables.worth import marks_of, not_converged, shows_attack

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]

MEASURES = ("n_poisoned", "nat1", "asr1", "pois_left", "nat2", "asr2")


@dataclass(frozen=True)
class Estimate:
    """A mean over the `n` seeds with a finite value, and half its 95 % t interval (None below two
    seeds). Percent for nat and asr, images for n_poisoned and pois_left."""

    mean: float
    half: float | None
    n: int


def estimate(values: Sequence[float]) -> Estimate | None:
    """The mean of finite `values` and its interval; None where there are none."""
    n = len(values)
    if not n:
        return None
    mean = math.fsum(values) / n
    square = math.fsum((value - mean) ** 2 for value in values)
    return Estimate(mean, half_width(math.sqrt(square / (n - 1)), n) if n > 1 else None, n)


@dataclass(frozen=True)
class Row:
    """One line of a table. `done` counts the cells behind it, `asked` all of them; `reference`
    holds the report's figures where this is one of its cells. `attacked`: whether ASR1 shows an
    attack, as far as the records say. `not_converged`: ``nat1``, ``nat2`` or both, where a
    network behind it did not converge."""

    target: str
    ratio: str
    defense: str
    estimates: dict[str, Estimate]
    done: int
    asked: int
    status: str
    reference: dict[str, float] | None = None
    attacked: bool = True
    not_converged: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Table:
    """One table of a sweep: `title` for people, `slug` for file names, `notes` for below it.
    `traits` hold the choices and protocol values that all its cells share; `clean` the sizes of
    their training sets before poison was added."""

    title: str
    slug: str
    rows: list[Row]
    traits: dict[str, str]
    notes: list[str] = field(default_factory=list)
    clean: list[int] = field(default_factory=list)

    @cached_property
    def several_defenses(self) -> bool:
        return len({row.defense for row in self.rows}) > 1

    @cached_property
    def several_seeds(self) -> bool:
        return any(row.asked > 1 for row in self.rows)

    @cached_property
    def all_done(self) -> bool:
        return all(row.done == row.asked for row in self.rows)

    @cached_property
    def compared(self) -> list[Row]:
        """The rows that stand in the reproduced report as well."""
        return [row for row in self.rows if row.reference is not None]


def build(sweep: Sweep) -> tuple[list[Table], pd.DataFrame]:
    """The tables of a sweep, and its tidy frame: one row per cell (see `tidy`)."""
    frame = tidy(sweep.cells)
    groups = split(sweep.cells)
    statistics = _statistics(frame, sweep.cells, groups)
    return [_table(group, statistics[n]) for n, group in enumerate(groups)], frame


def tidy(cells: Sequence[Cell]) -> pd.DataFrame:
    """One row per cell, whatever its status. Columns: id, status; the choices (dataset … seed);
    protocol_*, the resolved protocol; the counts (n_train … train_test_overlap); the figures
    (nat1 … asr2_under.*) and detection rates (auroc …) as fractions 0..1; seconds_* per stage.
    Empty means not recorded."""
    import pandas as pd

    lines = [_line(cell) for cell in cells]
    extra = sorted({name for line in lines for name in line})
    fixed = ["id", "status", *CHOICES]
    fixed += [name for name in extra if name.startswith("protocol_")]
    fixed += [*COUNTS, *FIGURES, *DETECTION]
    columns = fixed + [name for name in extra if name not in fixed]
    others = [name for name in extra if name in WORTH or name.startswith(UNDER)]
    # Where pyarrow is installed, pandas would make text of it that refuses what is not UTF-8.
    frame = pd.DataFrame(lines, columns=columns, dtype=object)
    set_kinds(frame, ["seed", *COUNTS], [*FIGURES, *DETECTION, *others])
    return frame


def set_kinds(frame: pd.DataFrame, whole: Sequence[str], numbers: Sequence[str]) -> None:
    """Makes columns of objects, None where there is nothing, Int64 (`whole`) or float64."""
    import pandas as pd

    frame[list(numbers)] = frame[list(numbers)].astype("float64")
    for name in whole:
        # Not by way of float, which cannot hold every seed above 2**53.
        values = [None if pd.isna(v) else round(v) for v in frame[name]]
        frame[name] = pd.array(values, dtype="Int64")


def _line(cell: Cell) -> dict[str, Any]:
    seconds = cell.run.get("seconds")
    return (
        {f"protocol_{key}": value for key, value in (cell.protocol or {}).items()}
        | {f"seconds_{key}": v for key, v in _mapping(seconds).items() if is_number(v)}
        | cell.choices
        | cell.numbers
        | {"id": cell.id, "status": cell.status}
    )


def _statistics(
    frame: pd.DataFrame, cells: Sequence[Cell], groups: Sequence[Group]
) -> list[dict[int, dict[str, Estimate]]]:
    """Per table and row number: the estimates, over done cells and finite values alone."""
    place = {id(c): (t, r) for t, g in enumerate(groups) for r, m in enumerate(g.rows.values())
             for c in m}  # fmt: skip
    places = [place[id(cell)] for cell in cells]
    done = (frame["status"] == DONE).to_numpy()
    values = frame.loc[done, list(MEASURES)].astype("float64")
    values[[name for name in MEASURES if name in FIGURES]] *= 100
    keys = [
        [p[part] for p, is_done in zip(places, done, strict=True) if is_done] for part in (0, 1)
    ]
    result: list[dict[int, dict[str, Estimate]]] = [{} for _ in groups]
    if not values.empty:
        grouped = values.groupby(keys)
        mean, std, count = grouped.mean(), grouped.std(), grouped.count()
        columns = zip(mean.index, mean.to_numpy(), std.to_numpy(), count.to_numpy(), strict=True)
        for (table, row), means, stds, counts in columns:
            result[table][row] = {
                name: Estimate(float(m), half_width(float(s), int(n)), int(n))
                for name, m, s, n in zip(MEASURES, means, stds, counts, strict=True)
                if n
            }
    return result


def _table(group: Group, statistics: dict[int, dict[str, Estimate]]) -> Table:
    marked = not_converged(group.cells)
    rows = [
        _row(group, key, cells, statistics.get(number, {}), marked)
        for number, (key, cells) in enumerate(group.rows.items())
    ]
    return Table(
        group.title, group.slug, rows, group.traits, notes_of(group), clean_images(group.cells)
    )  # fmt: skip


def _row(
    group: Group, key: Key, cells: Sequence[Cell], estimates: dict[str, Estimate],
    marked: Mapping[str, Sequence[str]],
) -> Row:  # fmt: skip
    target, ratio, defense = key
    done = sum(cell.done for cell in cells)
    shown = "–" if ratio is None else ratio_words(ratio, group.traits.get("protocol.ratio_of"))
    known = None
    # Under another protocol, or from one source class, the same words mean another experiment.
    said = group.traits
    alike = reference.asks_the_same(said.get("protocol"), said.get("source"), said)
    if defense == reference.DEFENSE and alike and ratio is not None:
        known = reference.lookup(group.trigger, target, ratio)
    return Row(
        str(target), shown, "–" if defense is None else str(defense), estimates,
        done, len(cells), status_of(cells), known, shows_attack(cells),
        marks_of(cells, marked),
    )  # fmt: skip


def status_of(cells: Sequence[Cell]) -> str:
    """`done`, `missing`, `failed: oom`; with several seeds `2 done, 1 failed: oom`."""
    counts = Counter(cell.status for cell in cells)
    if len(cells) == 1 or set(counts) == {DONE}:
        return cells[0].status
    return ", ".join(f"{n} {status}" for status, n in sorted(counts.items()))


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
