"""Tables of any layout as Markdown, LaTeX, HTML and CSV."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from backdoor_lab.core.sheets import csv_text
from backdoor_lab.core.terminal import plain
from backdoor_lab.results.facts import head, told
from backdoor_lab.results.measures import MEASURE, before_defense
from backdoor_lab.tables.markup import NOTHING, Grid, html_page, in_latex, in_markdown, short
from backdoor_lab.tables.notes import BEST
from backdoor_lab.tables.render import (
    NO_COMPETITORS,
    best_of,
    figure,
    needs_attack,
    signed,
    value_of,
)
from backdoor_lab.tables.wide import Key, Place, Wide

T = TypeVar("T")

DEFENSE = "defense"
ACROSS = 12
"""Figures in a line that a page or a screen has room for."""
NO_CONTEST = ("ratio", "seed", "trigger", "target", "source", "dataset")
"""What tells tasks apart: another attack or set of images is not a better one."""
BEST_OF_ROW = (
    "Bold: the best mean of a row against one attack, to the digits shown; none where an interval "
    "is wider than the difference to the next, and no ASR2 where ASR1 shows no attack."
)


def evenly(items: Sequence[T], parts: int) -> list[Sequence[T]]:
    """`items` in order, in at most `parts` runs of one length; the last may be shorter."""
    size = max(1, -(-len(items) // parts))
    return [items[at : at + size] for at in range(0, len(items), size)]


def grids(table: Wide) -> list[Grid]:
    """The table as text, in panels of at most ACROSS figures side by side, or of one column."""
    columns = table.columns
    fit = max(1, ACROSS // len(table.layout.values))
    panels = max(1, -(-len(columns) // fit))
    found = [grid(table, part) for part in evenly(columns, panels)]
    if len(found) < 2:
        return found
    # What is said below them is said once.
    return [
        replace(
            each, title=f"{each.title} ({number} of {len(found)})",
            notes=each.notes if number == len(found) else [],
        )
        for number, each in enumerate(found, 1)
    ]  # fmt: skip


def grid(table: Wide, columns: Sequence[Key] | None = None) -> Grid:
    """The table as text, its best values marked; of all columns, or of these."""
    layout, columns = table.layout, table.columns if columns is None else columns
    left, width = len(layout.rows), len(layout.values)
    several = any(place.asked > 1 for place in table.places.values())
    names = [short(_column(table, column)) for column in columns for _ in layout.values]
    heads = [MEASURE[name].head for _ in columns for name in layout.values]
    if width == 1 and any(names):
        # The title says the measure.
        names, heads = [], names
    rows = []
    for row in table.rows:
        places = [table.places.get((row, column)) for column in columns]
        line = [short(name) for name in row]
        line += [_text(name, place) for place in places for name in layout.values]
        rows.append(line + [_seeds(places)] * several)
    row_at = {row: number for number, row in enumerate(table.rows)}
    first = {column: left + width * number for number, column in enumerate(columns)}
    winners = _best(table)
    best = frozenset(
        (row_at[row], first[column] + layout.values.index(name))
        for row, column, name in winners
        if column in first
    )
    rule = BEST if DEFENSE in layout.axes else BEST_OF_ROW
    notes = [plain(note) for note in [*table.notes, *[rule] * bool(winners)]]
    return Grid(
        plain(table.title), [*map(head, layout.rows), *heads, *["Seeds"] * several], rows, notes,
        left, best, ["" for _ in layout.rows] + names + [""] * several if any(names) else [],
    )  # fmt: skip


def _column(table: Wide, column: Key) -> str:
    return ", ".join(map(told, table.layout.columns, column))


def _text(name: str, place: Place | None) -> str:
    if place is None:
        return ""
    if not place.done:
        return short(place.status)
    value = place.estimates.get(name)
    if value is None:
        return NOTHING
    return signed(figure(name, value, place.asked), name, place.not_converged)


def _seeds(places: list[Place | None]) -> str:
    """How many seeds stand behind the row's places: ``3``, or ``2-3`` where it differs."""
    counts = sorted({place.done for place in places if place is not None}) or [0]
    return "-".join(map(str, dict.fromkeys([counts[0], counts[-1]])))


def _best(table: Wide) -> list[tuple[Key, Key, str]]:
    """Where the best values stand: among the defenses against one attack where the defense is on
    an axis, else among the columns of a row."""
    contests: dict[object, list[tuple[Key, Key]]] = {}
    for row, column in table.places:
        contest, defense = _contest(table, row, column)
        if defense not in NO_COMPETITORS:
            contests.setdefault(contest, []).append((row, column))
    found = []
    for where in contests.values():
        for name in table.layout.values:
            places = [table.places[each] for each in where]
            values = [
                each.estimates.get(name) if each.attacked or not needs_attack(name) else None
                for each in places
            ]
            if not before_defense(name) or DEFENSE not in table.layout.axes:
                found += [(*where[winner], name) for winner in best_of(name, values)]
    return found


def _contest(table: Wide, row: Key, column: Key) -> tuple[object, str]:
    """What the competitors have in common, and the defense."""
    axes = table.layout.axes
    if DEFENSE not in axes:
        named = zip(table.layout.columns, column, strict=True)
        return (row, *(word for name, word in named if name in NO_CONTEST)), ""
    at = axes.index(DEFENSE)
    key = row + column
    return (key[:at] + key[at + 1 :]), key[at]


def markdown(table: Wide) -> str:
    """Aligned Markdown, fit to be printed."""
    return "\n".join(map(in_markdown, grids(table)))


def latex(table: Wide) -> str:
    r"""A fragment for ``\input`` that needs nothing but ``\usepackage{booktabs}``."""
    return "\n".join(map(in_latex, grids(table)))


def page(table: Wide) -> str:
    """A self-contained HTML page."""
    return html_page(table.title, grids(table))


def sheet(table: Wide) -> str:
    """CSV, one line per row of the table: the traits that all cells share, the row's names; then
    for each column and measure the mean, ``_ci95`` (half width) and ``_n`` (seeds), unrounded, and
    for each column how many of its cells are done and their status. Empty where there is none."""
    heads = [*table.traits, *table.layout.rows]
    for column in table.columns:
        before = f"{_column(table, column)} ".lstrip()
        heads += [before + name + s for name in table.layout.values for s in ("", "_ci95", "_n")]
        heads += [before + "done", before + "status"]
    lines = []
    for row in table.rows:
        line: list[object] = [*table.traits.values(), *row]
        for column in table.columns:
            place = table.places.get((row, column)) or Place({}, 0, 0, "")
            for name in table.layout.values:
                line += value_of(place.estimates.get(name))
            line += [place.done, place.status]
        lines.append(line)
    return csv_text(heads, lines)


FORMATS: dict[str, Callable[[Wide], str]] = {
    "csv": sheet,
    "md": markdown,
    "tex": latex,
    "html": page,
}
