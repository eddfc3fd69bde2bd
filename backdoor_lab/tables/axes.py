"""What the cells of a sweep can be told apart by, under the names of the command line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from backdoor_lab.results.measures import UNDER
from backdoor_lab.results.records import CHOICES, Cell
from backdoor_lab.tables.layout import adopt, flat, ratio_words, varied_config, words

PROTOCOL, CONFIG = "protocol.", "config."
SEED = "seed"
# Choices whose values speak for themselves.
_NAMES = ("dataset", "model", "recipe", "trigger", "target", "protocol", "defense", "ratio")


class Facts:
    """The choices of every cell, its resolved protocol under ``protocol.*``, and those config
    values under ``config.*`` that differ between cells of the same choices."""

    def __init__(self, cells: Sequence[Cell], also: Iterable[str] = ()) -> None:
        """`also` names config values wanted though nothing differs in them."""
        self.cells = list(cells)
        wanted = [name.removeprefix(CONFIG) for name in also if name.startswith(CONFIG)]
        names = list(dict.fromkeys([*varied_config(cells), *wanted]))
        configs = adopt(cells, "config") if names else [None] * len(self.cells)
        self.of = [
            _facts(cell, protocol, config, names)
            for cell, protocol, config in zip(cells, adopt(cells, "protocol"), configs, strict=True)
        ]
        self._columns: dict[str, list[str]] = {}
        self.names = list(dict.fromkeys(name for facts in self.of for name in facts))

    def word(self, number: int, name: str) -> str:
        """The value of cell `number` as text; a ratio in percent, unless it is a count."""
        return self._column(name)[number]

    def key(self, number: int, names: Iterable[str]) -> tuple[str, ...]:
        """The values of one cell by these names."""
        return tuple([self._column(name)[number] for name in names])

    def values(self, name: str, among: Iterable[int] | None = None) -> list[str]:
        """The different values of cells whose choices are known, in the order of the sweep."""
        column = self._column(name)
        numbers = range(len(self.of)) if among is None else among
        return list(dict.fromkeys(column[number] for number in numbers if self.of[number]))

    def _column(self, name: str) -> list[str]:
        if name not in self._columns:
            said = _ratio if name == "ratio" else lambda facts: words(facts.get(name))
            self._columns[name] = [said(facts) for facts in self.of]
        return self._columns[name]

    def determined(
        self, names: Sequence[str], by: Sequence[str], among: Iterable[int] | None = None
    ) -> list[str]:
        """Those of `names` that have one value wherever the values of `by` are the same, in the
        cells of these numbers."""
        numbers = range(len(self.of)) if among is None else among
        numbers = [number for number in numbers if self.of[number]]
        keys = [self.key(number, by) for number in numbers]
        return [
            name
            for name in names
            if len({(key, self.word(n, name)) for key, n in zip(keys, numbers, strict=True)})
            == len(set(keys))
        ]


def known_names(cells: Sequence[Cell]) -> list[str]:
    """The choices and ``protocol.*`` values that rows, columns and comparisons may name."""
    names = dict.fromkeys(CHOICES)
    for cell in cells:
        names |= dict.fromkeys(cell.choices)
        names |= dict.fromkeys(PROTOCOL + key for key in cell.protocol or {} if key != "name")
    return list(names)


def config_names(cells: Sequence[Cell]) -> list[str]:
    """The ``config.*`` values that they may name as well."""
    texts = {cell.config for cell in cells if cell.config is not None}
    return sorted({CONFIG + name for text in texts for name, _ in flat(json.loads(text))})


def under_names(cells: Sequence[Cell]) -> list[str]:
    """The measures on transformed test images that some of these cells have, in their order."""
    found = dict.fromkeys(name for cell in cells for name in cell.numbers)
    return [name for name in found if name.startswith(UNDER)]


def head(name: str) -> str:
    """A name as the head of a column: ``Target``, but ``protocol.ratio_of`` as it is."""
    return name if "." in name else name.capitalize()


def _facts(
    cell: Cell, protocol: dict[str, Any] | None, config: str | None, names: Sequence[str]
) -> dict[str, Any]:
    if not cell.choices:
        return {}
    resolved = {PROTOCOL + key: v for key, v in (protocol or {}).items() if key != "name"}
    values = dict(flat(json.loads(config))) if config and names else {}
    unset = None if config else "not recorded"
    return cell.choices | resolved | {CONFIG + name: values.get(name, unset) for name in names}


def told(name: str, word: str) -> str:
    """A value as it stands at the head of a column: ``spectral``, but ``seed 0``, ``lr 0.1``."""
    return word if name in _NAMES else f"{name.rpartition('.')[2]} {word}"


def _ratio(facts: dict[str, Any]) -> str:
    return ratio_words(facts.get("ratio"), facts.get(f"{PROTOCOL}ratio_of"))
