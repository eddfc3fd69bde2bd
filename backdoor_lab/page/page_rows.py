"""The columns of the page's table, which has one row per cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from backdoor_lab.core.terminal import plain
from backdoor_lab.core.validation import LONGEST, non_negative
from backdoor_lab.results.metrics import IMAGES, MEASURE
from backdoor_lab.results.records import CellRecord
from backdoor_lab.results.values import each_once, ratio_words, words
from backdoor_lab.results.versions import SECTIONS, labels
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
    """A column: its heading (`head`), its tooltip (`says`), whether it is `numeric`, and one text
    per cell."""

    head: str
    says: str
    numeric: bool
    texts: list[str]

    @property
    def choices(self) -> list[str]:
        """The values offered to filter the table by this column. Empty if there is only one value
        or too many, or if the column contains metrics."""
        texts = list(dict.fromkeys(self.texts))
        named = not self.numeric or self.head in ("Ratio", "Seed")
        return texts if named and 1 < len(texts) <= _MOST_CHOICES else []


def columns(cells: Sequence[CellRecord]) -> list[Column]:
    """Returns all columns: trigger, target, ratio, defense, other choices that differ between the
    cells, metrics (only those that at least one cell has), seconds, and status."""
    chosen = [_choice(cells, name) for name in (*ALWAYS, *_varied(cells))]
    found = [_figure(cells, name) for name in FIGURES if any(name in c.numbers for c in cells)]
    costs = [_seconds(cell) for cell in cells]
    shown = [NOTHING if cost is None else f"{cost:.1f}" for cost in costs]
    states = [_cut(cell.status) for cell in cells]
    tooltip = "total time of the cell's stages; cells may share stages"
    return [
        *chosen,
        *found,
        Column("Seconds", tooltip, True, shown),
        Column("Status", "done, missing, failed or diverged", False, states),
    ]


def shared(cells: Sequence[CellRecord]) -> dict[str, str]:
    """The choices that are the same for all cells, as a dict from name to text. Choices that always
    have a column are excluded."""
    known = [cell for cell in cells if cell.choices]
    names = sorted({name for cell in known for name in cell.choices} - set(ALWAYS))
    values = {name: set(_words(known, name)) for name in names}
    return {name: plain(found.pop()) for name, found in values.items() if len(found) == 1}


def _varied(cells: Sequence[CellRecord]) -> list[str]:
    names = sorted({name for cell in cells for name in cell.choices} - set(ALWAYS))
    same = shared(cells)
    return [name for name in names if name not in same]


def _choice(cells: Sequence[CellRecord], name: str) -> Column:
    known = [bool(cell.choices) for cell in cells]
    numeric = name in ("ratio", "seed")
    texts = [_cut(v) if k else NOTHING for v, k in zip(_words(cells, name), known, strict=True)]
    if name == "ratio":
        texts = [_ratio(cell) for cell in cells]
    return Column(plain(name).capitalize(), f"choice `{plain(name)}`", numeric, texts)


def _words(cells: Sequence[CellRecord], name: str) -> list[str]:
    """Each cell's value of the choice `name` as text. Triggers and defenses include versions."""
    if name in SECTIONS:
        return labels(cells, name)
    return each_once(words, [cell.choices.get(name) for cell in cells])


def _ratio(cell: CellRecord) -> str:
    value = cell.choices.get("ratio")
    known = (cell.protocol or {}).get("ratio_of")
    return NOTHING if value is None else ratio_words(value, known)


def figure(cell: CellRecord, name: str) -> str:
    """Format a metric of a cell with as many digits as in the tables."""
    measure, value = MEASURE[name], cell.numbers.get(name)
    return NOTHING if value is None else f"{value * measure.scale:.{measure.digits(1)}f}"


def _figure(cells: Sequence[CellRecord], name: str) -> Column:
    measure = MEASURE[name]
    texts = [figure(cell, name) for cell in cells]
    says = f"{measure.says}{'' if measure.unit != IMAGES else ' (number)'}"
    return Column(measure.head, says, True, texts)


def _seconds(cell: CellRecord) -> float | None:
    stages = cell.run.get("seconds")
    given = stages.values() if isinstance(stages, dict) else []
    spent = [s for value in given if (s := non_negative(value, high=LONGEST)) is not None]
    return sum(spent) if spent else None


def _cut(text: str) -> str:
    text = plain(text)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
