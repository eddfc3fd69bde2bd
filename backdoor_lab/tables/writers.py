"""One set of writers for every table: Markdown (which is also what is printed), LaTeX, HTML, CSV.

pandas' Styler and tabulate do not do: see the commit of this file for what they cost and escape.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from backdoor_lab.core.sheets import csv_text
from backdoor_lab.tables.markup import Grid, html_page, in_latex, in_markdown


@dataclass(frozen=True)
class Document:
    """A table ready to be written: `grids` for reading; `head` and `lines` for a spreadsheet,
    unrounded, None where there is no value."""

    title: str
    grids: list[Grid]
    head: list[str]
    lines: list[list[object]]


def markdown(document: Document) -> str:
    """Aligned Markdown, fit to be printed."""
    return "\n".join(map(in_markdown, document.grids))


def latex(document: Document) -> str:
    r"""A fragment for ``\input`` that needs nothing but ``\usepackage{booktabs}``."""
    return "\n".join(map(in_latex, document.grids))


def page(document: Document) -> str:
    """A self-contained HTML page."""
    return html_page(document.title, document.grids)


def sheet(document: Document) -> str:
    """CSV, unrounded; empty where there is no value."""
    return csv_text(document.head, document.lines)


FORMATS: dict[str, Callable[[Document], str]] = {
    "csv": sheet,
    "md": markdown,
    "tex": latex,
    "html": page,
}
