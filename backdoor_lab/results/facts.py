"""The settings in which the cells of a sweep differ, by their names on the command line."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from backdoor_lab.results import versions
from backdoor_lab.results.frame import frame_of
from backdoor_lab.results.records import CHOICES, CellRecord
from backdoor_lab.results.values import (
    by_key,
    each_once,
    flat,
    is_count,
    ratio_words,
    sort_value,
    words,
)

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]

PROTOCOL, CONFIG = "protocol.", "config."
SEED = "seed"
# Choices whose values are shown without the name of the choice.
_NAMES = ("dataset", "model", "recipe", "trigger", "target", "protocol", "defense", "ratio")

Key = tuple[Any, ...]
Words = tuple[str, ...]


class CellFields:
    """The values of all cells by name: their choices, their resolved protocols (``protocol.*``),
    and those config values that differ between cells with the same choices (``config.*``).

    Values are shown and compared as text, but sorted by value. Triggers and defenses carry their
    version (see `versions`), so that cells of two versions are never grouped together.
    """

    def __init__(
        self,
        cells: Sequence[CellRecord],
        also: Iterable[str] = (),
        sweeps: Sequence[str] | None = None,
    ) -> None:
        """Collects the values of `cells`. `also`: names of config values to include even if they do
        not differ. `sweeps`: the sweep name of each cell, for the frame."""
        self.cells = list(cells)
        self.sweeps = [""] * len(self.cells) if sweeps is None else list(sweeps)
        wanted = [name.removeprefix(CONFIG) for name in also if name.startswith(CONFIG)]
        names = list(dict.fromkeys([*varied_config(cells), *wanted]))
        configs = adopt(cells, "config") if names else [None] * len(self.cells)
        protocols = each_once(_resolved, adopt(cells, "protocol"))
        self.of = [
            _facts(cell, protocol, config, names)
            for cell, protocol, config in zip(cells, protocols, configs, strict=True)
        ]
        self._columns: dict[str, list[str]] = {}
        self._values = by_key(self.of)
        self.names = list(self._values)

    @cached_property
    def frame(self) -> pd.DataFrame:
        """Returns the tidy frame of these cells: one row per cell, in their order."""
        return frame_of(self)

    def word(self, number: int, name: str) -> str:
        """Returns the value of `name` for the cell at index `number`, as text. A poison ratio is in
        percent, or a number of images if it was configured as a number of images."""
        return self._column(name)[number]

    def words(self, name: str) -> list[str | None]:
        """Returns the value of `name` for each cell as text; None if a cell has no value."""
        given = zip(self._column(name), self._values[name], strict=True)
        return [None if value is None else word for word, value in given]

    def key(self, number: int, names: Iterable[str]) -> Words:
        """Returns the values of `names`, as text, for the cell at index `number`."""
        return tuple([self._column(name)[number] for name in names])

    def keys(self, names: Sequence[str]) -> list[Words]:
        """Returns one tuple per cell, with the cell's values of the choices in `names` as text."""
        columns = [self._column(name) for name in names]
        return list(zip(*columns, strict=True)) if columns else [()] * len(self.of)

    def values(self, name: str, among: Iterable[int] | None = None) -> list[str]:
        """Returns the distinct values of the field `name` as text, in the order of the sweep.
        Ignores cells whose choices are unknown."""
        column = self._column(name)
        numbers = range(len(self.of)) if among is None else among
        return list(dict.fromkeys(column[number] for number in numbers if self.of[number]))

    def in_order(self, keys: Iterable[Words], names: Sequence[str]) -> list[Words]:
        """Returns the distinct `keys`, sorted by their first value, then the second, and so on.
        The values of each of `names` are sorted numerically if all are numbers, otherwise by first
        appearance."""
        found = list(dict.fromkeys(keys))
        ranks = [
            self._ranks(name, dict.fromkeys(values))
            for name, values in zip(names, zip(*found, strict=True), strict=False)
        ]
        return sorted(found, key=lambda key: [rank[v] for rank, v in zip(ranks, key, strict=True)])

    def determined(
        self, names: Sequence[str], by: Sequence[str], among: Iterable[int] | None = None
    ) -> list[str]:
        """Returns those of the fields `names` that are determined by the fields `by`: cells with
        equal values of all fields `by` also have equal values of the returned fields. `among`: the
        indices of the cells to consider, by default all."""
        numbers = range(len(self.of)) if among is None else among
        numbers = [number for number in numbers if self.of[number]]
        keys = [self.key(number, by) for number in numbers]
        return [
            name
            for name in names
            if len({(key, self.word(n, name)) for key, n in zip(keys, numbers, strict=True)})
            == len(set(keys))
        ]

    def _column(self, name: str) -> list[str]:
        if name not in self._columns:
            values = self._values.get(name, [None] * len(self.of))
            if name == "ratio":
                self._columns[name] = [_ratio(facts) for facts in self.of]
            elif name in versions.SECTIONS:
                self._columns[name] = versions.labels(self.cells, name)
            else:
                self._columns[name] = each_once(words, values)
        return self._columns[name]

    def as_columns(self) -> dict[str, list[Any]]:
        """Returns a dict from the name of each field to the values of the field in all cells.
        Protocol and config values are given as text."""
        return {n: self.words(n) if "." in n else v for n, v in self._values.items()}

    def _ranks(self, name: str, texts: Iterable[str]) -> dict[str, Any]:
        sizes: dict[str, Any] = {}
        for text, facts in zip(self._column(name), self.of, strict=True):
            sizes.setdefault(text, sort_value(facts.get(name), name == "ratio" and _counts(facts)))
        ranks = {text: sizes.get(text) for text in texts}
        if None in ranks.values():
            return {text: number for number, text in enumerate(ranks)}
        return ranks


def known_names(cells: Sequence[CellRecord]) -> list[str]:
    """Returns the choices and ``protocol.*`` names that are allowed in rows, columns and
    comparisons."""
    names = dict.fromkeys(CHOICES)
    for cell in cells:
        names |= dict.fromkeys(cell.choices)
        names |= dict.fromkeys(PROTOCOL + key for key in cell.protocol or {} if key != "name")
    return list(names)


def config_names(cells: Sequence[CellRecord]) -> list[str]:
    """Returns the ``config.*`` names that are allowed in addition to `known_names`."""
    texts = {cell.config for cell in cells if cell.config is not None}
    return sorted({CONFIG + name for text in texts for name, _ in flat(json.loads(text))})


def head(name: str) -> str:
    """Returns a name as a column heading: ``Target`` for the choice ``target``; names with a dot,
    such as ``protocol.ratio_of``, are unchanged."""
    return name if "." in name else name.capitalize()


def labeled(name: str, word: str) -> str:
    """Returns a value as a column heading: ``spectral`` for a defense. For fields that are not in
    `_NAMES`, the heading begins with the last part of the field's name: ``lr 0.1`` for
    ``config.recipe.lr``."""
    return word if name in _NAMES else f"{name.rpartition('.')[2]} {word}"


def varied_config(cells: Sequence[CellRecord]) -> list[str]:
    """Returns the dotted names of config values that differ between cells with the same choices,
    except those that the resolved protocol already shows."""
    families: dict[Key, dict[str, CellRecord]] = defaultdict(dict)
    for cell in cells:
        if cell.config is not None:
            families[_family(cell)][cell.config] = cell
    varied: set[str] = set()
    for family in families.values():
        if len(family) > 1:
            varied |= _varied_among(list(family.values()))
    return sorted(varied)


def _varied_among(cells: Sequence[CellRecord]) -> set[str]:
    """Returns the names of config values that differ between these cells, except those that repeat
    a protocol value of the same cells."""
    configs = [_comparable(json.loads(cell.config or "{}")) for cell in cells]
    protocols = [{k: words(v) for k, v in (cell.protocol or {}).items()} for cell in cells]
    names = dict.fromkeys(name for each in configs for name in each)
    columns = {name: [each.get(name) for each in configs] for name in names}
    unset = words(None)
    return {
        name
        for name, values in columns.items()
        if len({unset if value is None else value for value in values}) > 1
        and not repeats(name, values, [each.get(name.rpartition(".")[2]) for each in protocols])
    }


def repeats(name: str, values: Sequence[str | None], protocol: Sequence[str | None]) -> bool:
    """Whether the config value `name` repeats the protocol value of the same key. Values of the
    sections ``protocol`` and ``defense`` can: an option of a defense comes from the protocol, and
    if the defense overrides it, the recorded protocol states the new value.

    `values` and `protocol` are the texts of both in the same cells; None: not recorded. Unset
    options of a defense repeat the protocol only if no cell sets the same value explicitly.
    """
    both = set(zip(values, protocol, strict=True))
    if name.startswith(PROTOCOL):
        return all(value is None or value == shown for value, shown in both)
    known = all(s is not None and v in (s, words(None), None) for v, s in both)
    return name.startswith("defense.") and known and len(both) == len({s for _, s in both})


def _comparable(config: dict[str, Any]) -> dict[str, str]:
    """Returns config values as text by dotted name. Omits the versions of triggers and defenses,
    because the displayed names contain the versions."""
    named = tuple(f"code.{section}." for section in versions.SECTIONS.values())
    return {k: words(v) for k, v in flat(config) if not k.startswith(named)}


def adopt(cells: Sequence[CellRecord], what: str) -> list[Any]:
    """Returns the protocol (or config) of each cell. For a cell that has no protocol, returns the
    protocol of its most closely related cells (see `_families`). Returns None for this cell if no
    related cell has a protocol, or if their protocols differ."""
    own = [getattr(cell, what) for cell in cells]
    if None not in own:
        return own
    known: dict[Key, list[Any]] = defaultdict(list)
    for cell, value in zip(cells, own, strict=True):
        if value is not None:
            for family in _families(cell, what):
                if value not in known[family]:
                    known[family].append(value)
    return [
        _adopted(cell, what, known) if value is None else value
        for cell, value in zip(cells, own, strict=True)
    ]


def _adopted(cell: CellRecord, what: str, known: dict[Key, list[Any]]) -> Any:
    nearest = next((known[f] for f in _families(cell, what) if f in known), [])
    return nearest[0] if len(nearest) == 1 else None


def _families(cell: CellRecord, what: str) -> list[Key]:
    """Returns the keys of the groups that `cell` belongs to, the group with the most similar cells
    first. Cells of the first group differ only in the seed. If `what` is ``protocol``, two more
    groups follow: cells with the same protocol name, defense, trigger and source; and cells with
    the same protocol name."""
    chosen = cell.choices
    near = [_family(cell)]
    if what == "protocol":
        names = ("protocol", "defense", "trigger", "source")
        near += [(what, *(chosen.get(name) for name in names)), (what, chosen.get("protocol"))]
    return near


def _family(cell: CellRecord) -> Key:
    return tuple(sorted((k, v) for k, v in cell.choices.items() if k != SEED and v is not None))


def _resolved(protocol: dict[str, Any] | None) -> dict[str, Any]:
    return {PROTOCOL + key: value for key, value in (protocol or {}).items() if key != "name"}


def _facts(
    cell: CellRecord, resolved: dict[str, Any], config: str | None, names: Sequence[str]
) -> dict[str, Any]:
    if not cell.choices:
        return {}
    if not names:
        return cell.choices | resolved
    values = dict(flat(json.loads(config))) if config else {}
    unset = None if config else "not recorded"
    return cell.choices | resolved | {CONFIG + name: values.get(name, unset) for name in names}


def _ratio(facts: dict[str, Any]) -> str:
    return ratio_words(facts.get("ratio"), facts.get(f"{PROTOCOL}ratio_of"))


def _counts(facts: dict[str, Any]) -> bool:
    return is_count(facts.get("ratio") or 0, facts.get(f"{PROTOCOL}ratio_of"))
