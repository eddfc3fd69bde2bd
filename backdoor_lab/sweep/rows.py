"""Formats the cells of a sweep as rows of one table. Columns are fixed before the first cell
runs."""

from __future__ import annotations

from collections.abc import Sequence

from backdoor_lab.core.terminal import plain
from backdoor_lab.results.facts import SEED, CellFields, head
from backdoor_lab.results.metrics import MEASURE
from backdoor_lab.results.records import MISSING, CellRecord
from backdoor_lab.sweep.manifest import RequestedCell, swept

ALWAYS = ("trigger", "target", "ratio")
FIGURES = ("nat1", "asr1", "n_poisoned", "pois_left", "nat2", "asr2")
GAP, NONE = "  ", "–"
WIDEST_FIGURE = 6
"""The width of a column of metrics: six characters, enough for ``100.00`` and for counts of
images."""


class Rows:
    """Formats cells as rows: trigger, target, ratio, other choices that differ between the cells,
    overrides that differ between cells whose rows would look the same, and metrics."""

    def __init__(self, asked: Sequence[RequestedCell]) -> None:
        facts = CellFields([CellRecord(each.id, MISSING, each.choices) for each in asked])
        others = [name for name in (*facts.names, SEED) if name not in ALWAYS]
        names = [*ALWAYS, *(n for n in dict.fromkeys(others) if len(facts.values(n)) > 1)]
        found = facts.keys(names)
        self._options = swept(asked, found)
        self._keys = {
            each.id: (*key, *(each.options.get(name, NONE) for name in self._options))
            for each, key in zip(asked, found, strict=True)
        }
        names += self._options
        keys = [tuple(map(head, names)), *self._keys.values()]
        self._widths = [max(map(len, column)) for column in zip(*keys, strict=True)]
        self._heads = [MEASURE[name].head for name in FIGURES]
        self._names = names

    def header(self) -> str:
        """The line of column headings."""
        figures = [each.rjust(self._wide(each)) for each in self._heads]
        return plain(GAP.join([*self._padded(list(map(head, self._names))), *figures]))

    def row(self, cell: CellRecord) -> str:
        """The row of a finished cell. For a failed cell, its status takes the place of the
        metrics."""
        key = self._padded(list(self._keys[cell.id]))
        if not cell.done:
            return plain(GAP.join([*key, cell.status]))
        return plain(GAP.join([*key, *map(self._figure, FIGURES, [cell] * len(FIGURES))]))

    def name(self, cell_id: str) -> str:
        """A short name of a cell, made of the choices and overrides that identify its row:
        `pixel bird 5%`, `patch bird 5% trigger.size=3`."""
        key = self._keys[cell_id]
        choices = len(key) - len(self._options)
        options = map("=".join, zip(self._options, key[choices:], strict=True))
        return plain(" ".join([*key[:choices], *options]))

    def _padded(self, words: list[str]) -> list[str]:
        return [word.ljust(width) for word, width in zip(words, self._widths, strict=True)]

    def _figure(self, name: str, cell: CellRecord) -> str:
        measure, value = MEASURE[name], cell.numbers.get(name)
        said = NONE if value is None else f"{measure.scale * value:.{measure.digits(1)}f}"
        return said.rjust(self._wide(measure.head))

    @staticmethod
    def _wide(title: str) -> int:
        return max(WIDEST_FIGURE, len(title))
