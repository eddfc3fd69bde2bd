"""Formats a table as plain text for a terminal, and as Markdown, LaTeX and HTML.

Names come from records, so they are escaped in every format except plain text. Control and other
unprintable characters are shown as `?`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise

from backdoor_lab.core.terminal import plain
from backdoor_lab.templates import render

NOTHING = "–"
LONGEST = 80
# Minimum number of characters per line, and the LaTeX font size that it requires.
_SIZES = (
    (70, r"\scriptsize\setlength{\tabcolsep}{3pt}"), (110, r"\tiny\setlength{\tabcolsep}{2.5pt}"),
)  # fmt: skip


@dataclass(frozen=True)
class TextTable:
    """A table of plain unescaped text; the first `left` columns contain names.

    `best`: the (row, column) positions set in bold. `over`: a line above the column headings with
    one group name per column (empty for none); equal neighboring names are merged.
    """

    title: str
    head: list[str]
    rows: list[list[str]]
    notes: list[str]
    left: int
    best: frozenset[tuple[int, int]] = frozenset()
    over: list[str] = field(default_factory=list)

    def spans(self) -> list[tuple[str, int]]:
        """The names in `over`, each with the number of columns it spans."""
        return [(name, len(list(same))) for name, same in groupby(self.over)]


def short(text: str, longest: int = LONGEST) -> str:
    """Returns `text` without unprintable characters, shortened to fit a table."""
    text = plain(text)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def in_terminal(grid: TextTable) -> str:
    """Returns the table as aligned text for a terminal: Markdown without escapes."""
    return _aligned(grid, plain, lambda text: plain(text).strip())


def in_markdown(grid: TextTable) -> str:
    """Returns the table as aligned Markdown for a file."""
    return _aligned(grid, _markdown_text, _markdown_line)


def _aligned(grid: TextTable, of_cell: Callable[[str], str], of_line: Callable[[str], str]) -> str:
    """Returns the table as text: the title, the rows with vertical bars between columns, and the
    notes. Column headings start with the name of their group. `of_cell` escapes the text of a cell,
    and `of_line` a line of text."""
    over = grid.over or [""] * len(grid.head)
    head = [f"{group} {name}".strip() for group, name in zip(over, grid.head, strict=True)]
    lines = [[of_cell(cell) for cell in head]]
    for row, cells in enumerate(grid.rows):
        texts = [of_cell(cell) for cell in cells]
        lines.append([f"**{t}**" if (row, c) in grid.best else t for c, t in enumerate(texts)])
    widths = [max(3, *(len(line[c]) for line in lines)) for c in range(len(head))]
    rule = ["-" * w if c < grid.left else "-" * (w - 1) + ":" for c, w in enumerate(widths)]
    lines.insert(1, rule)
    text = [f"### {of_line(grid.title)}", ""]
    for line in lines:
        cells = [
            cell.ljust(w) if c < grid.left else cell.rjust(w)
            for c, (cell, w) in enumerate(zip(line, widths, strict=True))
        ]
        text.append(f"| {' | '.join(cells)} |")
    return "\n".join([*text, "", *(f"- {of_line(note)}" for note in grid.notes), ""])


_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def _markdown_text(text: str) -> str:
    """Escape everything that GitHub would interpret as Markdown or HTML, except underscores between
    letters. Names do not become links: `://` and `www.` are broken up. `&`, `<` and `>` between two
    spaces, as in "p < 0.05", have no effect and are not escaped."""
    text = re.sub(
        r"([\\|`*\[\]$~]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=\bwww)\.)", r"\\\1", plain(text)
    )
    return re.sub(r"(?<! )[&<>]|[&<>](?! )", lambda found: _ENTITIES[found[0]], text)


def _markdown_line(text: str) -> str:
    """Escape a whole line: what `_markdown_text` escapes, and characters that would start a list, a
    heading or a rule, or end a heading."""
    begins = r"^(\d*)(?=(?:#+|[-+.)])(?:\s|$)|-[- ]*$)"
    return re.sub(rf"{begins}|(?=#+$)", r"\1\\", _markdown_text(text.strip()))


_TEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "_": r"\_", "%": r"\%", "&": r"\&",
    "#": r"\#", "$": r"\$", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "[": "{[}", "]": "{]}",
    "*": "{*}", '"': "''", "±": r"$\pm$", "–": "--", "…": r"\dots{}", "`": "{`}", "→": r"$\to$",
    "†": r"\dag{}", "‡": r"\ddag{}",
}  # fmt: skip


def in_latex(grid: TextTable) -> str:
    r"""Returns a LaTeX fragment for ``\input`` that requires only ``\usepackage{booktabs}``."""
    columns = "l" * grid.left + "r" * (len(grid.head) - grid.left)
    body = []
    for row, cells in enumerate(grid.rows):
        texts = [_latex_text(cell) for cell in cells]
        bold = [rf"\textbf{{{t}}}" if (row, c) in grid.best else t for c, t in enumerate(texts)]
        body.append(" & ".join(bold) + r" \\")
    return "\n".join([
        r"\begin{table}[htbp]", r"\centering", rf"\caption{{{_latex_text(grid.title)}}}",
        *_latex_size(grid),
        rf"\makebox[\linewidth]{{\begin{{tabular}}{{{columns}}}", r"\toprule", *_latex_over(grid),
        " & ".join(map(_latex_text, grid.head)) + r" \\", r"\midrule", *body,
        r"\bottomrule", r"\end{tabular}}", r"\par\smallskip\footnotesize\raggedright",
        *(rf"{_latex_text(note)}\par" for note in grid.notes), r"\end{table}", "",
    ])  # fmt: skip


def _latex_size(grid: TextTable) -> list[str]:
    """Returns commands that select a smaller font for wide tables. Tables that are still too wide
    overflow equally on both sides."""
    lines = [grid.head, *grid.rows]
    width = sum(2 + max(len(line[c]) for line in lines) for c in range(len(grid.head)))
    return [said for most, said in _SIZES if width > most][-1:]


def _latex_over(grid: TextTable) -> list[str]:
    """Returns LaTeX lines with the group names above their columns and a rule below each name."""
    cells, rules, column = [], [], 1
    for name, width in grid.spans():
        if name:
            cells.append(rf"\multicolumn{{{width}}}{{c}}{{{_latex_text(name)}}}")
            rules.append(rf"\cmidrule(lr){{{column}-{column + width - 1}}}")
        else:
            cells += [""] * width
        column += width
    return [" & ".join(cells) + r" \\", " ".join(rules)] if rules else []


def _latex_text(text: str) -> str:
    signs = [
        _TEX.get(c) or (c if c.isascii() else f"{{[}}U+{ord(c):04X}{{]}}") for c in plain(text)
    ]
    # Two of these in a row would form a ligature.
    return "".join(
        f"{sign}{{}}" if sign == after in ("-", "'", ",") else sign
        for sign, after in pairwise([*signs, ""])
    )


def html_page(title: str, grids: Sequence[TextTable]) -> str:
    """Returns a self-contained HTML page without scripts, links or external resources."""
    return render("tables.html", title=title, grids=grids)
