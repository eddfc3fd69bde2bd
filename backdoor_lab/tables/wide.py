"""Tables of any layout: some choices make the rows, some the columns, some measures the values.

What is on neither axis is never averaged over but for the seed: whatever else differs, as another
trigger or a resolved protocol value, makes a table of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.options import names
from backdoor_lab.results.facts import PROTOCOL, SEED, Facts, config_names, known_names, under_names
from backdoor_lab.results.measures import MEASURE
from backdoor_lab.results.records import Cell
from backdoor_lab.tables.build import Estimate, estimate, status_of
from backdoor_lab.tables.layout import slug, telling
from backdoor_lab.tables.wide_notes import notes_of
from backdoor_lab.tables.worth import marks_of, not_converged, shows_attack

OPTIONS = ("rows", "columns", "values")
# What stands on an axis and decides other choices and protocol values along with it.
DECIDING = ("protocol", "defense", "trigger")

Key = tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """Names of choices (or ``protocol.*``, ``config.*``) for rows and columns, of measures."""

    rows: tuple[str, ...] = ("target", "ratio")
    columns: tuple[str, ...] = ()
    values: tuple[str, ...] = ("nat2", "asr2", "pois_left")

    @property
    def axes(self) -> tuple[str, ...]:
        return self.rows + self.columns


@dataclass(frozen=True)
class Place:
    """One place of a table: the estimates over its seeds, cells done and asked for, in words.
    `attacked`: whether ASR1 shows an attack, as far as the records say. `not_converged`: ``nat1``,
    ``nat2`` or both, where a network behind it did not converge."""

    estimates: dict[str, Estimate]
    done: int
    asked: int
    status: str
    attacked: bool = True
    not_converged: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Wide:
    """A table of a layout. `places` by row and column; where none is, the sweep has no cell.
    `rows` and `columns`: numbers by their size, everything else in the order of the sweep; of
    source against target, the classes in one order along both axes."""

    title: str
    slug: str
    layout: Layout
    traits: dict[str, str]
    rows: list[Key]
    columns: list[Key]
    places: dict[tuple[Key, Key], Place]
    notes: list[str]


def layout_of(given: Mapping[str, str], cells: Sequence[Cell]) -> Layout:
    """The layout that the options `rows`, `columns`, `values` name (commas between names).

    Only `columns` may be empty. Raises ConfigError for a name that neither these cells nor the
    measures have, and for one on both axes.
    """
    empty = [key for key, value in given.items() if not value.strip() and key != "columns"]
    if empty:
        raise ConfigError(f"`{empty[0]}=` names nothing: name some, or leave the option out")
    known, more = known_names(cells), config_names(cells)
    chosen = {
        key: names(key, value, MEASURE, under_names(cells))
        if key == "values"
        else names(key, value, known, more)
        for key, value in given.items()
        if value.strip()
    }
    layout = Layout(**chosen)
    both = set(layout.rows) & set(layout.columns)
    if both:
        raise ConfigError(f"`rows` and `columns` both name {', '.join(sorted(both))}")
    return layout


def as_json(layouts: Sequence[Layout]) -> str:
    """Layouts as the text of a file that `remembered` reads."""
    return json.dumps([asdict(layout) for layout in layouts], indent=1) + "\n"


def remembered(entries: Any, cells: Sequence[Cell]) -> list[Layout]:
    """The layouts in such a file's JSON that these cells still have the names for; whatever else
    is in it is left aside."""
    found = []
    for entry in entries if isinstance(entries, list) else []:
        try:
            found.append(layout_of({key: ",".join(entry[key]) for key in OPTIONS}, cells))
        except (ConfigError, KeyError, TypeError):
            continue
    return found


def build_wide(cells: Sequence[Cell], layout: Layout, facts: Facts | None = None) -> list[Wide]:
    """The tables of one layout, in the order of the sweep. `facts` of these cells, if they are at
    hand, with every name of the layout."""
    facts = Facts(cells, layout.axes) if facts is None else facts
    apart = splitting(facts, layout)
    groups: dict[Key, list[int]] = {}
    for number, cell in enumerate(cells):
        if cell.choices:
            groups.setdefault(facts.key(number, apart), []).append(number)
    traits = [dict(zip(apart, key, strict=True)) for key in groups]
    differing = telling(traits)
    taken: set[str] = set()
    tables = []
    for members, shared in zip(groups.values(), traits, strict=True):
        title = _title(layout, shared, differing)
        name = _slug(layout, shared, differing, taken)
        taken.add(name)
        notes = notes_of(facts, members, layout.axes, layout.values, shared)
        places = _places(facts, members, layout)
        rows, columns = (_along(facts, layout, places, axis) for axis in (0, 1))
        tables.append(Wide(title, name, layout, shared, rows, columns, places, notes))
    return tables


def splitting(facts: Facts, layout: Layout) -> list[str]:
    """What sets tables apart: everything but the axes, the seed, and what the axes decide."""
    others = [name for name in facts.names if name not in (*layout.axes, SEED)]
    if not set(DECIDING) & set(layout.axes):
        return others
    follows = [name for name in others if name.startswith(PROTOCOL) or name == "source"]
    differing = [name for name in follows if len(facts.values(name)) > 1]
    decided = facts.determined(differing, layout.axes)
    return [name for name in others if name not in decided]


def _along(facts: Facts, layout: Layout, places: Iterable[tuple[Key, Key]], axis: int) -> list[Key]:
    """The keys along one axis, in order."""
    keys = [place[axis] for place in places]
    if {layout.rows, layout.columns} == {("source",), ("target",)}:
        keys = [key for key in _classes(list(places)) if key in keys]
    return facts.in_order(keys, (layout.rows, layout.columns)[axis])


def _classes(places: Sequence[tuple[Key, Key]]) -> list[Key]:
    """All classes, as the outer axis of the sweep lists them: along the inner axis the first class
    comes last, since it makes no pair with itself."""
    outer = int(len(places) > 1 and places[0][0] != places[1][0])
    return list(dict.fromkeys(place[axis] for axis in (outer, 1 - outer) for place in places))


def _title(layout: Layout, traits: dict[str, str], differing: Sequence[str]) -> str:
    said = ", ".join(MEASURE[name].head for name in layout.values)
    where = [traits["trigger"]] if "trigger" in traits else []
    where += [f"{name} {traits[name]}" for name in differing]
    return ": ".join([said, *[", ".join(where)] * bool(where)])


def _slug(layout: Layout, traits: dict[str, str], differing: Sequence[str], taken: set[str]) -> str:
    words = [traits.get("trigger", ""), *(traits[name] for name in differing)]
    parts = [*(".".join(getattr(layout, option)) for option in OPTIONS), "-".join(words)]
    whole = json.dumps([asdict(layout), traits])
    return slug("_".join(filter(None, parts)), whole, taken)


def _places(facts: Facts, members: Sequence[int], layout: Layout) -> dict[tuple[Key, Key], Place]:
    cells: dict[tuple[Key, Key], list[Cell]] = {}
    for number in members:
        where = facts.key(number, layout.rows), facts.key(number, layout.columns)
        cells.setdefault(where, []).append(facts.cells[number])
    marked = not_converged(facts.cells[number] for number in members)
    return {where: _place(found, layout.values, marked) for where, found in cells.items()}


def _place(
    cells: Sequence[Cell], values: Sequence[str], marked: Mapping[str, Sequence[str]]
) -> Place:
    done = [cell.numbers for cell in cells if cell.done]
    found: dict[str, Any] = {}
    for name in values:
        scale = MEASURE[name].scale
        found[name] = estimate([scale * each[name] for each in done if name in each])
    estimates = {name: value for name, value in found.items() if value is not None}
    return Place(
        estimates, len(done), len(cells), status_of(cells), shows_attack(cells),
        marks_of(cells, marked),
    )  # fmt: skip
