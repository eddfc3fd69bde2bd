"""Parses tables from their text, and recomputes their values from records."""

from __future__ import annotations

import html.parser
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

HEADS = {
    "#Pois": ("counts", "n_poisoned", 1), "#Pois Left": ("counts", "pois_left", 1),
    "Nat1": ("", "nat1", 100), "ASR1": ("", "asr1", 100), "Nat2": ("", "nat2", 100),
    "ASR2": ("", "asr2", 100), "AUROC": ("detection", "auroc", 1),
}  # fmt: skip

DIGITS = {"#Pois": 1, "#Pois Left": 1, "AUROC": 3}


def figures(cells: list[dict[str, Any]], head: str) -> list[float]:
    group, name, scale = HEADS[head]
    found = [((c[group] or {}) if group else c).get(name) for c in cells]
    return [scale * value for value in found if value is not None]


def text_of(values: list[float], head: str, seeds: int) -> str:
    """Format values as a table does: mean, interval and, if some of the `seeds` are missing, their
    number."""
    if not values:
        return "–"
    n, images = len(values), head.startswith("#")
    constant = head == "#Pois" and len(set(values)) == 1
    digits = 0 if images and (n == 1 or constant) else DIGITS.get(head, 2)
    text = f"{np.mean(values):.{digits}f}"
    if n > 1 and not constant:
        half = stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n)
        text += f" ± {half:.{digits}f}"
    return text if n == seeds else f"{text} (n={n})"


def parsed(text: str) -> list[list[dict[str, str]]]:
    """Parse the tables in a Markdown text: each is a list of rows, and a row maps column heads to
    texts."""
    tables: list[list[dict[str, str]]] = []
    head: list[str] = []
    for line in [*text.splitlines(), ""]:
        cells = [c.strip() for c in line.strip("|").split("|")] if line.startswith("|") else []
        if not cells:
            head = []
        elif not head:
            head = cells
            tables.append([])
        elif not set("".join(cells)) <= set("-:"):
            tables[-1].append(dict(zip(head, cells, strict=True)))
    return tables


def side_by_side(path: Path) -> list[dict[str, str]]:
    """Parse a table whose columns may be split into several panels. Returns its rows."""
    return [
        {head: text for part in parts for head, text in part.items()}
        for parts in zip(*parsed(path.read_text()), strict=True)
    ]


def bare(text: str) -> str:
    return text.replace("**", "")


class Tags(html.parser.HTMLParser):
    """Collects the tags and the text of a page, as a browser sees them."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.seen = ""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.seen += data


def latex_with_booktabs() -> bool:
    if shutil.which("pdflatex") is None or shutil.which("kpsewhich") is None:
        return False
    return bool(
        subprocess.run(
            ["kpsewhich", "booktabs.sty"], capture_output=True, check=False
        ).stdout.strip()
    )
