"""Converts tables of any layout to text in rows and columns, for display and for spreadsheets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from backdoor_lab.core.terminal import plain
from backdoor_lab.results.facts import head, labeled
from backdoor_lab.results.metrics import IMAGES, MEASURE
from backdoor_lab.tables.estimates import figure, number, value_heads, value_of
from backdoor_lab.tables.layout import ROW
from backdoor_lab.tables.markup import NOTHING, TextTable, short
from backdoor_lab.tables.notes import CONVERGED, comparison
from backdoor_lab.tables.pivot import Key, PivotCell, PivotTable, expected_seeds
from backdoor_lab.tables.reference import COLUMNS
from backdoor_lab.tables.writers import Document

T = TypeVar("T")

ACROSS = 12
"""Number of values per line that fit on a page or a screen."""
NONE = PivotCell({}, 0, 0, "")
IN_COLUMN = 30
"""The most characters of a status that is repeated in each column of a row."""


def document(table: PivotTable) -> Document:
    """Returns a table as a document that can be written in any format."""
    return Document(
        table.title, grids(table), *(_report_sheet if table.spec.report else _sheet)(table)
    )


def grids(table: PivotTable) -> list[TextTable]:
    """Returns the table as one or more text tables.

    In the layout of the published report (``spec.report``), a comparison with the published values
    follows if the report contains any of the rows. In other layouts, the columns are divided into
    panels. A panel has at most `ACROSS` values per line, but at least one column.
    """
    if table.spec.report:
        return [grid(table), *[_compared(table)] * bool(table.compared)]
    fit = max(1, ACROSS // len(table.spec.values))
    parts = evenly(table.columns, max(1, -(-len(table.columns) // fit)))
    found = [grid(table, part) for part in parts]
    if len(found) < 2:
        return found
    # Only the last panel gets the notes.
    return [
        replace(
            each, title=f"{each.title} ({number} of {len(found)})",
            notes=each.notes if number == len(found) else [],
        )
        for number, each in enumerate(found, 1)
    ]  # fmt: skip


def evenly(items: Sequence[T], parts: int) -> list[Sequence[T]]:
    """Splits `items` into at most `parts` runs of equal length; the last one may be shorter.

    >>> evenly([1, 2, 3, 4, 5], 2)
    [[1, 2, 3], [4, 5]]
    """
    size = max(1, -(-len(items) // parts))
    return [items[at : at + size] for at in range(0, len(items), size)]


def grid(table: PivotTable, columns: Sequence[Key] | None = None) -> TextTable:
    """Returns `columns` of the table (default: all) as text, with the best values marked."""
    columns = table.columns if columns is None else columns
    values, names = table.spec.values, _names(table)
    over = [short(_column(table, column)) for column in columns for _ in values]
    heads = [MEASURE[name].head for _ in columns for name in values]
    if len(values) == 1 and any(over):
        # The title already names the measure.
        over, heads = [], over
    several = any(cell.asked > 1 for cell in table.cells.values())
    status = table.spec.report and any(each.done < each.asked for each in table.cells.values())
    rows = [_row(table, row, columns, names, several, status) for row in table.rows]
    at = {row: number for number, row in enumerate(table.rows)}
    first = {column: len(names) + len(values) * n for n, column in enumerate(columns)}
    best = frozenset(
        (at[row], first[column] + values.index(name))
        for row, column, name in table.best
        if column in first
    )
    more = ["Seeds"] * several + ["Status"] * status
    return TextTable(
        plain(table.title), [*(head(table.spec.rows[n]) for n in names), *heads, *more], rows,
        [plain(note) for note in table.notes], len(names), best,
        [*[""] * len(names), *over, *[""] * len(more)] if any(over) else [],
    )  # fmt: skip


def _names(table: PivotTable) -> list[int]:
    """Returns the indices of the row names to show: all of them, except that the layout of the
    published report omits the defense if there is only one."""
    shown = list(range(len(table.spec.rows)))
    if table.spec.report and len({row[-1] for row in table.rows}) == 1:
        return shown[:-1]
    return shown


def _row(
    table: PivotTable, row: Key, columns: Sequence[Key], names: Sequence[int], several: bool,
    status: bool,
) -> list[str]:  # fmt: skip
    cells = [table.cells.get((row, column)) for column in columns]
    line = [short(row[n]) for n in names]
    line += [_text(table, name, cell) for cell in cells for name in table.spec.values]
    known = [cell for cell in cells if cell is not None]
    said = [short(known[0].status)] if status else []
    return [*line, *[_seeds(known)] * several, *said]


def _text(table: PivotTable, name: str, cell: PivotCell | None) -> str:
    if cell is None:
        return ""
    if not cell.done and not table.spec.report:
        return short(cell.status, IN_COLUMN)
    seeds = expected_seeds(cell, table.spec)
    text = figure(name, cell.estimates.get(name), seeds)
    marked = name in cell.signs and name in cell.estimates
    return f"{text} {cell.signs[name]}" if marked else text


def _seeds(cells: Sequence[PivotCell]) -> str:
    """Returns the number of seeds behind a row's values: ``3``, or ``2-3`` if it varies."""
    counts = sorted({cell.done for cell in cells}) or [0]
    return "-".join(map(str, dict.fromkeys([counts[0], counts[-1]])))


def _column(table: PivotTable, column: Key) -> str:
    return ", ".join(map(labeled, table.spec.columns, column))


def _compared(table: PivotTable) -> TextTable:
    names = _names(table)
    heads = [head(ROW[n]) for n in names]
    heads += [f"{MEASURE[name].head} {kind}" for name in COLUMNS for kind in ("ref", "diff")]
    rows = []
    for row in table.compared:
        cell, line = table.cells[row, ()], [short(row[n]) for n in names]
        for name in COLUMNS:
            line += [_reference(name, cell), _difference(name, cell)]
        rows.append(line)
    title = f"{plain(table.title)}: reference and difference"
    notes = [plain(comparison(table.traits, table.clean)), CONVERGED]
    return TextTable(title, heads, rows, notes, len(names))


def _reference(name: str, cell: PivotCell) -> str:
    value = (cell.reference or {})[name]
    return f"{value:.0f}" if MEASURE[name].unit == IMAGES else f"{value:.2f}"


def difference(name: str, cell: PivotCell) -> float | None:
    """Returns the cell's value minus the published report's, in percentage points or images."""
    ours = cell.estimates.get(name)
    if ours is None or cell.reference is None:
        return None
    return ours.mean - cell.reference[name]


def _difference(name: str, cell: PivotCell) -> str:
    value = difference(name, cell)
    if value is None:
        return NOTHING
    digits = MEASURE[name].digits(cell.done)
    return f"{round(value, digits) + 0.0:+.{digits}f}"


def _report_sheet(table: PivotTable) -> tuple[list[str], list[list[object]]]:
    """Returns the heading and the lines of a spreadsheet with fixed columns: the values that all
    rows share, the row's target, ratio and defense, seeds (the number of completed cells), status,
    the values of each measure as in `value_of`, then the published report's values (``ref_*``) and
    the differences from them (``diff_*``). Values are percentages or numbers of images, not
    rounded; a missing value is an empty cell."""
    heads = [*table.traits, *ROW, "seeds", "status", *_figure_heads(table)]
    heads += [kind + name for kind in ("ref_", "diff_") for name in COLUMNS]
    lines = []
    for row in table.rows:
        cell = table.cells[row, ()]
        line: list[object] = [*table.traits.values(), *row, cell.done, cell.status]
        line += _figures(table, cell)
        line += [(cell.reference or {}).get(name) for name in COLUMNS]
        lines.append(line + [number(difference(name, cell)) for name in COLUMNS])
    return heads, lines


def _sheet(table: PivotTable) -> tuple[list[str], list[list[object]]]:
    """Returns the heading and the lines of a spreadsheet, one line per row of the table.

    A line holds the choices that all of the table's cells share and the choices of the row. Then,
    for each column, it holds the values as in `value_of`, the number of completed cells, and the
    status. A missing value leaves its field empty.
    """
    heads = [*table.traits, *table.spec.rows]
    for column in table.columns:
        before = f"{_column(table, column)} ".lstrip()
        heads += [before + name for name in (*_figure_heads(table), "done", "status")]
    lines = []
    for row in table.rows:
        line: list[object] = [*table.traits.values(), *row]
        for column in table.columns:
            cell = table.cells.get((row, column), NONE)
            line += [*_figures(table, cell), cell.done, cell.status]
        lines.append(line)
    return heads, lines


def _figure_heads(table: PivotTable) -> list[str]:
    return [head for name in table.spec.values for head in value_heads(name)]


def _figures(table: PivotTable, cell: PivotCell) -> list[object]:
    values = table.spec.values
    return [each for name in values for each in value_of(name, cell.estimates.get(name))]
