"""Tables as text: Markdown (which is also what is printed), LaTeX, HTML and CSV.

Names come from records, so every format escapes them; control and other unprintable characters
are shown as `?`.
"""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from backdoor_lab.reports.notes import comparison
from backdoor_lab.reports.reference import COLUMNS
from backdoor_lab.reports.tables import MEASURES, Estimate, Row, Table

HEADS = {
    "n_poisoned": "#Pois", "nat1": "Nat1", "asr1": "ASR1",
    "pois_left": "#Pois Left", "nat2": "Nat2", "asr2": "ASR2",
}  # fmt: skip
IMAGES = ("n_poisoned", "pois_left")
NOTHING = "–"
_LONGEST = 80


@dataclass(frozen=True)
class Grid:
    """Plain unescaped text in rows and columns; the first `left` columns hold names."""

    title: str
    head: list[str]
    rows: list[list[str]]
    notes: list[str]
    left: int


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
        line += [_figure(name, row.estimates.get(name), row.done) for name in MEASURES]
        line += [str(row.done)] * table.several_seeds
        rows.append(line + [_short(row.status)] * (not table.all_done))
    return Grid(plain(table.title), head, rows, [plain(n) for n in table.notes], _left(table))


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
    return Grid(title, head, rows, [plain(comparison(table.traits))], _left(table))


def _left(table: Table) -> int:
    return len(_names_head(table))


def _names_head(table: Table) -> list[str]:
    return ["Target", "Ratio"] + ["Defense"] * table.several_defenses


def _names(table: Table, row: Row) -> list[str]:
    return [_short(row.target), row.ratio] + [_short(row.defense)] * table.several_defenses


def _figure(name: str, value: Estimate | None, done: int) -> str:
    if value is None:
        return NOTHING
    fixed = name == "n_poisoned" and value.half == 0
    digits = 2 if name not in IMAGES else 0 if value.n == 1 or fixed else 1
    text = f"{value.mean:.{digits}f}"
    if value.half is not None and not fixed:
        text += f" ± {value.half:.{digits}f}"
    return text if value.n == done else f"{text} (n={value.n})"


def _reference(name: str, row: Row) -> str:
    value = (row.reference or {})[name]
    return f"{value:.0f}" if name in IMAGES else f"{value:.2f}"


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
    digits = 2 if name not in IMAGES else 0 if row.done == 1 else 1
    return f"{round(value, digits) + 0.0:+.{digits}f}"


def plain(text: str) -> str:
    """One printable line: no newline, no terminal escape, no text-direction mark."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in text)


def _short(text: str) -> str:
    text = plain(text)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def markdown(table: Table) -> str:
    """Aligned Markdown, fit to be printed."""
    return "\n".join(_markdown(grid) for grid in grids(table))


def _markdown(grid: Grid) -> str:
    lines = [[_in_markdown(cell) for cell in line] for line in (grid.head, *grid.rows)]
    widths = [max(3, *(len(line[c]) for line in lines)) for c in range(len(grid.head))]
    rule = ["-" * w if c < grid.left else "-" * (w - 1) + ":" for c, w in enumerate(widths)]
    lines.insert(1, rule)
    text = [f"### {_in_markdown(grid.title)}", ""]
    for line in lines:
        cells = [
            cell.ljust(w) if c < grid.left else cell.rjust(w)
            for c, (cell, w) in enumerate(zip(line, widths, strict=True))
        ]
        text.append(f"| {' | '.join(cells)} |")
    return "\n".join([*text, "", *(f"- {_in_markdown(note)}" for note in grid.notes), ""])


def _in_markdown(text: str) -> str:
    """Escapes what Markdown or its HTML would act on; an underscore inside a word is harmless."""
    text = re.sub(r"([\\|`*\[\]]|(?<!\w)_|_(?!\w))", r"\\\1", text)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


_TEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "_": r"\_", "%": r"\%", "&": r"\&",
    "#": r"\#", "$": r"\$", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "[": "{[}", "]": "{]}",
    "*": "{*}", '"': "''", "±": r"$\pm$", "–": "--", "…": r"\dots{}", "`": "{`}",
}  # fmt: skip


def latex(table: Table) -> str:
    r"""A fragment for ``\input`` that needs nothing but ``\usepackage{booktabs}``."""
    return "\n".join(_latex(grid) for grid in grids(table))


def _latex(grid: Grid) -> str:
    columns = "l" * grid.left + "r" * (len(grid.head) - grid.left)
    body = [" & ".join(map(_in_latex, row)) + r" \\" for row in grid.rows]
    return "\n".join([
        r"\begin{table}[htbp]", r"\centering", rf"\caption{{{_in_latex(grid.title)}}}",
        rf"\begin{{tabular}}{{{columns}}}", r"\toprule",
        " & ".join(map(_in_latex, grid.head)) + r" \\", r"\midrule", *body,
        r"\bottomrule", r"\end{tabular}", r"\par\smallskip\footnotesize\raggedright",
        *(rf"{_in_latex(note)}\par" for note in grid.notes), r"\end{table}", "",
    ])  # fmt: skip


def _in_latex(text: str) -> str:
    return "".join(_TEX.get(c) or (c if c.isascii() else f"{{[}}U+{ord(c):04X}{{]}}") for c in text)


_STYLE = (
    "body{font-family:sans-serif}table{border-collapse:collapse}.name{text-align:left}"
    "th,td{padding:.2em .6em;border-bottom:1px solid #ccc}td:not(.name){text-align:right}"
)


def page(table: Table) -> str:
    """A self-contained HTML page: no script, no link, nothing loaded from elsewhere."""
    title = html.escape(plain(table.title))
    head = f'<meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
    body = "\n".join(map(_html, grids(table)))
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'


def _html(grid: Grid) -> str:
    def line(tag: str, cells: Sequence[str]) -> str:
        marks = ['class="name"' if c < grid.left else "" for c in range(len(cells))]
        texts = (
            f"<{f'{tag} {mark}'.strip()}>{html.escape(cell)}</{tag}>"
            for cell, mark in zip(cells, marks, strict=True)
        )
        return f"<tr>{''.join(texts)}</tr>"

    notes = "".join(f"<p>{html.escape(note)}</p>" for note in grid.notes)
    rows = "\n".join([line("th", grid.head), *(line("td", row) for row in grid.rows)])
    return f"<h3>{html.escape(grid.title)}</h3>\n<table>\n{rows}\n</table>\n{notes}"


def sheet(table: Table) -> str:
    """CSV with the same columns whatever the table shows: the traits all rows share, then names,
    seeds (done cells), status, each figure with _ci95 (half width) and _n, then ref_* and diff_*.
    Percent and images, unrounded; empty where there is no value."""
    head = [*table.traits, "target", "ratio", "defense", "seeds", "status"]
    head += [name + suffix for name in MEASURES for suffix in ("", "_ci95", "_n")]
    head += [kind + name for kind in ("ref_", "diff_") for name in COLUMNS]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    for row in table.rows:
        writer.writerow([*table.traits.values(), *_sheet_line(row)])
    return text.getvalue()


def _sheet_line(row: Row) -> list[object]:
    line: list[object] = [row.target, row.ratio, row.defense, row.done, row.status]
    for name in MEASURES:
        value = row.estimates.get(name)
        line += (
            [None, None, 0]
            if value is None
            else [_number(value.mean), _number(value.half), value.n]
        )
    line += [(row.reference or {}).get(name) for name in COLUMNS]
    return line + [_number(difference(name, row)) for name in COLUMNS]


def _number(value: float | None) -> float | None:
    """Ten digits after the point: hides the 16th digit of binary arithmetic, nothing else."""
    return None if value is None else round(value, 10)


FORMATS: dict[str, Callable[[Table], str]] = {
    "csv": sheet,
    "md": markdown,
    "tex": latex,
    "html": page,
}
