"""The writers of all tables: text for a terminal, Markdown, LaTeX, HTML and CSV.

pandas' Styler and tabulate are not used, since they do not escape all characters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from backdoor_lab.tables.markup import TextTable, html_page, in_latex, in_markdown, in_terminal
from backdoor_lab.tables.sheets import csv_text


@dataclass(frozen=True)
class Document:
    """A table to write. `grids` are for display; `head` (the column headings) and `lines` are for a
    spreadsheet. Values in `lines` are not rounded, and missing values are None."""

    title: str
    grids: list[TextTable]
    head: list[str]
    lines: list[list[object]]


def terminal(document: Document) -> str:
    """Returns aligned text for a terminal: Markdown without escapes."""
    return "\n".join(map(in_terminal, document.grids))


def markdown(document: Document) -> str:
    """Returns aligned Markdown for a file."""
    return "\n".join(map(in_markdown, document.grids))


def latex(document: Document) -> str:
    r"""Returns a LaTeX fragment for ``\input`` that requires only ``\usepackage{booktabs}``."""
    return "\n".join(map(in_latex, document.grids))


def page(document: Document) -> str:
    """Returns a self-contained HTML page."""
    return html_page(document.title, document.grids)


def sheet(document: Document) -> str:
    """Returns CSV text; values are not rounded, and a missing value is an empty cell."""
    return csv_text(document.head, document.lines)


FORMATS: dict[str, Callable[[Document], str]] = {
    "csv": sheet,
    "md": markdown,
    "tex": latex,
    "html": page,
}
OUT_HELP = "file to write the table to: .csv, .md, .tex or .html"
