"""Tables as text: Markdown (which is also what is printed), LaTeX, HTML and CSV."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from itertools import groupby

from backdoor_lab.core.sheets import csv_text
from backdoor_lab.core.terminal import plain
from backdoor_lab.results.measures import IMAGES, MEASURE, before_defense, figure_of
from backdoor_lab.tables.build import MEASURES, Estimate, Row, Table
from backdoor_lab.tables.markup import NOTHING, Grid, html_page, in_latex, in_markdown, short
from backdoor_lab.tables.notes import BEST, comparison
from backdoor_lab.tables.reference import COLUMNS
from backdoor_lab.tables.worth import SIGN

__all__ = [
    "FORMATS", "NO_COMPETITORS", "Grid", "best_of", "difference", "figure", "grids",
    "latex", "markdown", "needs_attack", "page", "sheet", "signed", "value_of",
]  # fmt: skip

HEADS = {name: MEASURE[name].head for name in MEASURES}
NO_COMPETITORS = ("oracle", "clean_data")
"""The controls that are told which images are poisoned: they set the mark, and win nothing."""
_NEEDS_ATTACK = ("asr2", "asr_elsewhere2")
"""Where there was no attack, a low figure is no merit of a defense."""


def needs_attack(name: str) -> bool:
    """Whether a measure tells nothing of a defense where there was no attack."""
    return figure_of(name) in _NEEDS_ATTACK


def grids(table: Table) -> list[Grid]:
    """The table in the report's layout, and beside it the report's figures where there are any."""
    found = [_figures(table)]
    if table.compared:
        found.append(_compared(table))
    return found


def _figures(table: Table) -> Grid:
    head = [*_names_head(table), *(HEADS[name] for name in MEASURES)]
    head += ["Seeds"] * table.several_seeds + ["Status"] * (not table.all_done)
    rows = []
    for row in table.rows:
        line = _names(table, row)
        line += [
            signed(figure(name, row.estimates.get(name), row.done), name, row.not_converged)
            for name in MEASURES
        ]
        line += [str(row.done)] * table.several_seeds
        rows.append(line + [short(row.status)] * (not table.all_done))
    best = _best(table)
    notes = [plain(note) for note in [*table.notes, *[BEST] * bool(best)]]
    return Grid(plain(table.title), head, rows, notes, _left(table), best)


def _best(table: Table) -> frozenset[tuple[int, int]]:
    """For each target and ratio, the best defense by each measure that tells good from bad."""
    found = set()
    attacks = groupby(sorted(enumerate(table.rows), key=_attack), key=_attack)
    for _, members in attacks:
        rows = [(n, row) for n, row in members if row.defense not in NO_COMPETITORS]
        for column, name in enumerate(MEASURES, _left(table)):
            winners = best_of(name, (_competing(name, row) for _, row in rows))
            if not before_defense(name):
                found |= {(rows[winner][0], column) for winner in winners}
    return frozenset(found)


def _competing(name: str, row: Row) -> Estimate | None:
    return row.estimates.get(name) if row.attacked or not needs_attack(name) else None


def _attack(numbered: tuple[int, Row]) -> tuple[str, str]:
    return numbered[1].target, numbered[1].ratio


def best_of(name: str, values: Iterable[Estimate | None]) -> list[int]:
    """Where the best means stand, alike to the digits shown; none where fewer than two compete, or
    where an interval is wider than the difference to the next."""
    measure, given = MEASURE[name], list(values)
    shown = {
        n: round(value.mean, measure.digits(value.n)) for n, value in enumerate(given) if value
    }
    if not measure.better or len(shown) < 2:
        return []
    best = max(shown.values(), key=lambda mean: measure.better * mean)
    winners = [n for n, mean in shown.items() if mean == best]
    next_best = max(
        (n for n in shown if n not in winners),
        key=lambda n: measure.better * shown[n],
        default=None,
    )
    return winners if _apart(given, winners, next_best) else []


def _apart(given: Sequence[Estimate | None], winners: Sequence[int], next_best: int | None) -> bool:
    """Whether no interval among these is wider than the difference of their means."""
    others = [] if next_best is None else [next_best]
    found = [value for n in [*winners, *others] if (value := given[n]) is not None]
    widths = [2 * value.half for value in found if value.half is not None]
    difference = 0.0 if next_best is None else abs(found[0].mean - found[-1].mean)
    return max(widths, default=0.0) <= difference


def _compared(table: Table) -> Grid:
    head = _names_head(table)
    head += [f"{HEADS[name]} {kind}" for name in COLUMNS for kind in ("ref", "diff")]
    rows = []
    for row in table.compared:
        line = _names(table, row)
        for name in COLUMNS:
            line += [_reference(name, row), _difference(name, row)]
        rows.append(line)
    title = f"{plain(table.title)}: reference and difference"
    return Grid(title, head, rows, [plain(comparison(table.traits, table.clean))], _left(table))


def _left(table: Table) -> int:
    return len(_names_head(table))


def _names_head(table: Table) -> list[str]:
    return ["Target", "Ratio"] + ["Defense"] * table.several_defenses


def _names(table: Table, row: Row) -> list[str]:
    return [short(row.target), row.ratio] + [short(row.defense)] * table.several_defenses


def figure(name: str, value: Estimate | None, seeds: int) -> str:
    """``99.88 ± 0.19``; with ``(n=2)`` where it rests on other than this number of seeds."""
    if value is None:
        return NOTHING
    fixed = name == "n_poisoned" and value.half == 0
    digits = MEASURE[name].digits(1 if fixed else value.n)
    text = f"{value.mean:.{digits}f}"
    if value.half is not None and not fixed:
        text += f" ± {value.half:.{digits}f}"
    return text if value.n == seeds else f"{text} (n={value.n})"


def signed(text: str, name: str, not_converged: Container[str]) -> str:
    """A figure's text, with the sign of a network that did not converge where it needs one."""
    return f"{text} {SIGN}" if name in not_converged else text


def _reference(name: str, row: Row) -> str:
    value = (row.reference or {})[name]
    return f"{value:.0f}" if MEASURE[name].unit == IMAGES else f"{value:.2f}"


def difference(name: str, row: Row) -> float | None:
    """Ours minus the report's: percentage points, or images."""
    ours = row.estimates.get(name)
    if ours is None or row.reference is None:
        return None
    return ours.mean - row.reference[name]


def _difference(name: str, row: Row) -> str:
    value = difference(name, row)
    if value is None:
        return NOTHING
    digits = MEASURE[name].digits(row.done)
    return f"{round(value, digits) + 0.0:+.{digits}f}"


def markdown(table: Table) -> str:
    """Aligned Markdown, fit to be printed."""
    return "\n".join(map(in_markdown, grids(table)))


def latex(table: Table) -> str:
    r"""A fragment for ``\input`` that needs nothing but ``\usepackage{booktabs}``."""
    return "\n".join(map(in_latex, grids(table)))


def page(table: Table) -> str:
    """A self-contained HTML page."""
    return html_page(table.title, grids(table))


def sheet(table: Table) -> str:
    """CSV with the same columns whatever the table shows: the traits all rows share, then names,
    seeds (done cells), status, each figure with _ci95 (half width) and _n, then ref_* and diff_*.
    Percent and images, unrounded; empty where there is no value."""
    head = [*table.traits, "target", "ratio", "defense", "seeds", "status"]
    head += [name + suffix for name in MEASURES for suffix in ("", "_ci95", "_n")]
    head += [kind + name for kind in ("ref_", "diff_") for name in COLUMNS]
    return csv_text(head, [[*table.traits.values(), *_sheet_line(row)] for row in table.rows])


def _sheet_line(row: Row) -> list[object]:
    line: list[object] = [row.target, row.ratio, row.defense, row.done, row.status]
    for name in MEASURES:
        line += value_of(row.estimates.get(name))
    line += [(row.reference or {}).get(name) for name in COLUMNS]
    return line + [_number(difference(name, row)) for name in COLUMNS]


def value_of(value: Estimate | None) -> list[object]:
    """Mean, half the interval, number of seeds, for a CSV file."""
    return [None, None, 0] if value is None else [_number(value.mean), _number(value.half), value.n]


def _number(value: float | None) -> float | None:
    """Ten digits after the point: hides the 16th digit of binary arithmetic, nothing else."""
    return None if value is None else round(value, 10)


FORMATS: dict[str, Callable[[Table], str]] = {
    "csv": sheet,
    "md": markdown,
    "tex": latex,
    "html": page,
}
