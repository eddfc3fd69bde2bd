"""The page's table of all cells as HTML that reads and prints without any script."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from backdoor_lab.core.checks import LONGEST, non_negative
from backdoor_lab.core.terminal import plain
from backdoor_lab.results.measures import IMAGES, MEASURE
from backdoor_lab.results.records import Cell
from backdoor_lab.results.values import ratio_words, words
from backdoor_lab.tables.markup import NOTHING

ALWAYS = ("trigger", "target", "ratio", "defense")
FIGURES = (
    "n_poisoned", "nat1", "asr1", "asr_elsewhere1", "n_removed", "pois_left", "nat2", "asr2",
    "asr_elsewhere2", "auroc",
)  # fmt: skip
_LONGEST = 60
_MOST_CHOICES = 60


@dataclass(frozen=True)
class Column:
    """One column: its `head`, what it `says` on hovering, whether it holds numbers, and the text
    of each cell."""

    head: str
    says: str
    numeric: bool
    texts: list[str]


def columns(cells: Sequence[Cell]) -> list[Column]:
    """Trigger, target, ratio and defense, what else differs between the cells, the figures that
    some cell has, seconds and status."""
    chosen = [_choice(cells, name) for name in (*ALWAYS, *_varied(cells))]
    found = [_figure(cells, name) for name in FIGURES if any(name in c.numbers for c in cells)]
    costs = [_seconds(cell) for cell in cells]
    shown = [NOTHING if cost is None else f"{cost:.1f}" for cost in costs]
    states = [_cut(cell.status) for cell in cells]
    told = "what the cell's stages took; cells may share stages"
    return [
        *chosen,
        *found,
        Column("Seconds", told, True, shown),
        Column("Status", "done, missing, failed or diverged", False, states),
    ]


def table(cells: Sequence[Cell], shown: Sequence[Column]) -> str:
    """The table; row i belongs to cell i. The first column's text is a button that opens it."""
    heads = "".join(_head(number, column) for number, column in enumerate(shown))
    rows = "\n".join(_row(number, cell, shown) for number, cell in enumerate(cells))
    return (
        '<table id="cells"><caption class="unseen">All cells</caption>'
        f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}\n</tbody></table>"
    )


def filters(shown: Sequence[Column]) -> str:
    """A drop-down for each column of names that holds several, but not too many."""
    found = []
    for number, column in enumerate(shown):
        texts = list(dict.fromkeys(column.texts))
        named = not column.numeric or column.head in ("Ratio", "Seed")
        if named and 1 < len(texts) <= _MOST_CHOICES:
            choices = "".join(f"<option>{html.escape(text)}</option>" for text in texts)
            found.append(
                f'<span><label for="by{number}">{html.escape(column.head)}</label>'
                f'<select id="by{number}" data-column="{number}"><option value="">all</option>'
                f"{choices}</select></span>"
            )
    return "\n".join(found)


def shared(cells: Sequence[Cell]) -> dict[str, str]:
    """The choices that all cells have in common, without those that have a column."""
    known = [cell.choices for cell in cells if cell.choices]
    names = sorted({name for choices in known for name in choices} - set(ALWAYS))
    values = {name: {words(choices.get(name)) for choices in known} for name in names}
    return {name: plain(found.pop()) for name, found in values.items() if len(found) == 1}


def _varied(cells: Sequence[Cell]) -> list[str]:
    names = sorted({name for cell in cells for name in cell.choices} - set(ALWAYS))
    same = shared(cells)
    return [name for name in names if name not in same]


def _choice(cells: Sequence[Cell], name: str) -> Column:
    given = [cell.choices.get(name) for cell in cells]
    known = [bool(cell.choices) for cell in cells]
    numeric = name in ("ratio", "seed")
    texts = [_cut(words(v)) if k else NOTHING for v, k in zip(given, known, strict=True)]
    if name == "ratio":
        texts = [_ratio(cell) for cell in cells]
    return Column(plain(name).capitalize(), f"choice `{plain(name)}`", numeric, texts)


def _ratio(cell: Cell) -> str:
    value = cell.choices.get("ratio")
    known = (cell.protocol or {}).get("ratio_of")
    return NOTHING if value is None else ratio_words(value, known)


def figure(cell: Cell, name: str) -> str:
    """One figure of a cell, rounded as the tables round it."""
    measure, value = MEASURE[name], cell.numbers.get(name)
    return NOTHING if value is None else f"{value * measure.scale:.{measure.digits(1)}f}"


def _figure(cells: Sequence[Cell], name: str) -> Column:
    measure = MEASURE[name]
    texts = [figure(cell, name) for cell in cells]
    says = f"{measure.says}{'' if measure.unit != IMAGES else ' (number)'}"
    return Column(measure.head, says, True, texts)


def _seconds(cell: Cell) -> float | None:
    stages = cell.run.get("seconds")
    given = stages.values() if isinstance(stages, dict) else []
    spent = [s for value in given if (s := non_negative(value, high=LONGEST)) is not None]
    return sum(spent) if spent else None


def _cut(text: str) -> str:
    text = plain(text)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _head(number: int, column: Column) -> str:
    kind = ' class="number"' if column.numeric else ""
    return (
        f'<th scope="col"{kind} aria-sort="none"><button type="button" data-column="{number}" '
        f'title="{html.escape(column.says)}">{html.escape(column.head)}</button></th>'
    )


def _row(number: int, cell: Cell, shown: Sequence[Column]) -> str:
    parts = []
    for place, column in enumerate(shown):
        text = html.escape(column.texts[number])
        if place == 0:
            entry = 'tabindex="-1" ' if number else ""
            named = html.escape(f"{column.texts[number]}: details of {plain(cell.id)}")
            text = f'<button type="button" class="open" {entry}aria-label="{named}">{text}</button>'
        kind = ' class="number"' if column.numeric else ""
        parts.append(f"<td{kind}>{text}</td>")
    state = html.escape(cell.status.split(":")[0])
    return f'<tr data-cell="{number}" data-state="{state}">{"".join(parts)}</tr>'
