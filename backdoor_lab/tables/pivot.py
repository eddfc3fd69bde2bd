"""Builds tables of any layout from the tidy frame of cells.

The rows and columns are choices, and the values are measures. Values are averaged over seeds only.
Cells that also differ in a choice that is on neither axis go into separate tables.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from backdoor_lab.results.facts import CellFields
from backdoor_lab.results.metrics import MEASURE
from backdoor_lab.results.records import DONE, CellRecord
from backdoor_lab.tables import reference
from backdoor_lab.tables.best import Winner, best, bold_note, by_seed
from backdoor_lab.tables.estimates import Estimate, estimate, wilson_note
from backdoor_lab.tables.layout import PivotSpec, TableGroup, split
from backdoor_lab.tables.learned import CleanNetworks, not_converged, shows_attack, signs_of
from backdoor_lab.tables.notes import clean_images, interval_note, notes_of, versions_shown

Key = tuple[str, ...]
Places = dict[tuple[Key, Key], list[int]]


@dataclass(frozen=True)
class PivotCell:
    """One position of a table: the estimates over its seeds, the number of completed cells (`done`)
    and of requested cells (`asked`), and the `status` of the cells.

    `attacked`: whether ASR1 indicates an attack (True if unknown). `signs` maps measures to a
    footnote mark: † for a network that did not learn, ‡ for an attack without effect. `reference`:
    the values in the published report, only for tables in the layout of the report. `seeds` maps
    each measure to its recorded values by seed, for paired tests.
    """

    estimates: dict[str, Estimate]
    done: int
    asked: int
    status: str
    attacked: bool = True
    signs: Mapping[str, str] = field(default_factory=dict)
    reference: dict[str, float] | None = None
    seeds: Mapping[str, Mapping[int, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class PivotTable:
    """A table to display.

    `title`: the title for display. `slug`: the title for file names. `notes`: remarks to show below
    the table. `traits`: the values that all cells share. `clean`: the sizes of the cells' training
    sets before poisoning. A position that is missing in `cells` has no cell in the sweep.

    `rows` and `columns` are sorted: numbers by value, other values in the order of the sweep. If
    one axis is the source class and the other the target class, both list the classes in the same
    order. In the published report's layout, all rows are in the order of the sweep.
    """

    title: str
    slug: str
    spec: PivotSpec
    traits: dict[str, str]
    rows: list[Key]
    columns: list[Key]
    cells: dict[tuple[Key, Key], PivotCell]
    best: frozenset[Winner]
    notes: list[str]
    clean: list[int] = field(default_factory=list)

    @property
    def compared(self) -> list[Key]:
        """The rows that also exist in the published report."""
        return [row for row, _ in self.cells if self.cells[row, ()].reference is not None]


def expected_seeds(cell: PivotCell, spec: PivotSpec) -> int:
    """Returns the number of seeds behind a value, unless the table marks it with another one."""
    return cell.done if spec.report else cell.asked


def pivot(facts: CellFields, spec: PivotSpec) -> list[PivotTable]:
    """Returns the tables of a layout, in the order of the sweep. `facts` must contain every field
    that `spec` names."""
    groups = split(facts, spec)
    keys = facts.keys(spec.rows), facts.keys(spec.columns)
    places = [_places(group, *keys) for group in groups]
    estimates = _estimates(facts, places, spec.values)
    clean = CleanNetworks.among(facts.cells)
    return [_table(*each, spec, clean) for each in zip(groups, places, estimates, strict=True)]


def pivot_cells(cells: Sequence[CellRecord], spec: PivotSpec) -> list[PivotTable]:
    """Returns the tables of a layout for these cells."""
    return pivot(CellFields(cells, spec.axes), spec)


def _places(group: TableGroup, rows: Sequence[Key], columns: Sequence[Key]) -> Places:
    facts, found = group.facts, Places()
    for number in group.numbers:
        row = rows[number]
        if not facts.of[number]:
            row = (facts.cells[number].id, *["–"] * (len(row) - 1))
        found.setdefault((row, columns[number]), []).append(number)
    return found


def _estimates(
    facts: CellFields, places: Sequence[Places], values: Sequence[str]
) -> list[dict[tuple[Key, Key], dict[str, Estimate]]]:
    """Returns one dict per table, from each position to a dict from the name of a measure to its
    estimate. Only completed cells with finite values contribute to an estimate."""
    import numpy as np

    keys = [(table, where) for table, each in enumerate(places) for where in each]
    at = {n: k for k, (table, where) in enumerate(keys) for n in places[table][where]}
    done = [number for number in at if facts.cells[number].done]
    frame = facts.frame.reindex(columns=list(values)).iloc[done].astype("float64")
    scaled = frame * [MEASURE[name].scale for name in values]
    found: list[dict[tuple[Key, Key], dict[str, Estimate]]] = [{} for _ in places]
    if not done:
        return found
    groups = np.array([at[number] for number in done])
    by_place = scaled.groupby(groups)
    images = facts.frame.reindex(columns=[MEASURE[name].of for name in values]).iloc[done]
    least = images.astype("float64").groupby(groups).min()
    sides = (by_place.mean(), by_place.std(), by_place.count(), least)
    lines = zip(sides[0].index, *(side.to_numpy() for side in sides), strict=True)
    for key, *columns in lines:
        table, where = keys[key]
        found[table][where] = {
            name: estimate(name, float(mean), float(std), int(n), float(of))
            for name, mean, std, n, of in zip(values, *columns, strict=True)
            if n
        }
    return found


def _table(
    group: TableGroup, places: Places, estimates: Mapping[tuple[Key, Key], dict[str, Estimate]],
    spec: PivotSpec, clean: CleanNetworks,
) -> PivotTable:  # fmt: skip
    marked = not_converged(group.cells, clean)
    cells = {
        where: _cell(group, numbers, estimates.get(where, {}), marked, clean, spec)
        for where, numbers in places.items()
    }
    facts = group.facts
    rows, columns = (_along(facts, spec, cells, axis) for axis in (0, 1))
    winners = best(cells, spec)
    several = any(each.asked > 1 for each in cells.values())
    figures = wilson_note(spec.values, [each.estimates for each in cells.values()])
    signs = {
        facts.cells[number].id: _visible(cells[where])
        for where, numbers in places.items() for number in numbers
    }  # fmt: skip
    fewer = any(
        value.n != expected_seeds(each, spec)
        for each in cells.values() for value in each.estimates.values()
    )  # fmt: skip
    notes = notes_of(group, spec, interval_note(several, fewer), clean, signs)
    notes += versions_shown(
        [group.title, *(text for key in rows + columns for text in key), *notes]
    )
    notes += [*figures, *bold_note(cells, spec)]
    return PivotTable(
        group.title, group.slug, spec, group.traits, rows, columns, cells, winners, notes,
        clean_images(group.cells),
    )  # fmt: skip


def _cell(
    group: TableGroup, numbers: Sequence[int], estimates: dict[str, Estimate],
    marked: Mapping[str, Sequence[str]], clean: CleanNetworks, spec: PivotSpec,
) -> PivotCell:  # fmt: skip
    cells = [group.facts.cells[number] for number in numbers]
    attacked = shows_attack(cells, clean)
    return PivotCell(
        estimates, sum(cell.done for cell in cells), len(cells), status_of(cells),
        attacked, signs_of(cells, marked, attacked),
        _reference(group.facts.of[numbers[0]]) if spec.report else None,
        {name: by_seed(cells, name) for name in spec.values} if len(cells) > 1 else {},
    )  # fmt: skip


def _visible(cell: PivotCell) -> dict[str, str]:
    """Returns the footnote marks of the measures for which the table shows a value."""
    return {name: sign for name, sign in cell.signs.items() if name in cell.estimates}


def _reference(shared: Mapping[str, Any]) -> dict[str, float] | None:
    """Returns the published report's results for the experiment that `shared` (field name to value)
    describes, or None if the report does not contain this experiment."""
    if not shared or shared["defense"] != reference.DEFENSE:
        return None
    if not reference.asks_the_same(shared["protocol"], shared.get("source"), shared):
        return None
    return reference.lookup(shared["trigger"], shared["target"], shared["ratio"])


def status_of(cells: Sequence[CellRecord]) -> str:
    """Returns the status of the cells at one position as text.

    For example, ``failed: oom`` for one cell, ``2 done, 1 failed: oom`` for several seeds.
    """
    counts = Counter(cell.status for cell in cells)
    if len(cells) == 1 or set(counts) == {DONE}:
        return cells[0].status
    return ", ".join(f"{n} {status}" for status, n in sorted(counts.items()))


def _along(
    facts: CellFields, spec: PivotSpec, places: Iterable[tuple[Key, Key]], axis: int
) -> list[Key]:
    """Returns the keys along an axis (0: rows, 1: columns), in the order in which the table shows
    them."""
    keys = [place[axis] for place in places]
    if spec.report:
        return list(dict.fromkeys(keys))
    if {spec.rows, spec.columns} == {("source",), ("target",)}:
        keys = [key for key in _classes(list(places)) if key in keys]
    return facts.in_order(keys, (spec.rows, spec.columns)[axis])


def _classes(places: Sequence[tuple[Key, Key]]) -> list[Key]:
    """Returns all classes in the order in which they first appear on the outer axis (source or
    target) of the sweep, then those that appear only on the inner axis. The inner axis may list the
    first class last, since source and target always differ."""
    outer = int(len(places) > 1 and places[0][0] != places[1][0])
    return list(dict.fromkeys(place[axis] for axis in (outer, 1 - outer) for place in places))
