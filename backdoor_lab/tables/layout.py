"""Groups the cells into tables, and gives each table a title and a file name.

The published report's layout has one row per target, ratio and defense, and one table per
combination of the other values that vary. Other layouts have one table per combination of the
values that are not on an axis. All layouts ignore the seed, and values that are determined by other
values.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.letters import transcribed
from backdoor_lab.core.options import names
from backdoor_lab.core.validation import safe_name
from backdoor_lab.results.facts import (
    CONFIG,
    PROTOCOL,
    SEED,
    CellFields,
    config_names,
    known_names,
)
from backdoor_lab.results.measure_names import measures_of
from backdoor_lab.results.metrics import MEASURE
from backdoor_lab.results.records import CellRecord

OPTIONS = ("rows", "columns", "values")
ROW = ("target", "ratio", "defense")
MEASURES = ("n_poisoned", "nat1", "asr1", "pois_left", "nat2", "asr2")
UNREADABLE = "unreadable"
UNKNOWN = {"trigger": UNREADABLE}
# Choices that may determine other choices and protocol values if they are on an axis.
DECIDING = ("protocol", "defense", "trigger")


@dataclass(frozen=True)
class PivotSpec:
    """The layout of tables. `rows` and `columns` list the names of the choices (or ``protocol.*``,
    ``config.*``) on the two axes, and `values` lists the names of measures.

    If `report` is true, tables have the layout of the published report: there is a separate table
    for each combination of the values that are on neither axis, rows keep the order of the sweep,
    and if a cell is not done, a column shows the status.
    """

    rows: tuple[str, ...] = ("target", "ratio")
    columns: tuple[str, ...] = ()
    values: tuple[str, ...] = ("nat2", "asr2", "pois_left")
    report: bool = False

    @property
    def axes(self) -> tuple[str, ...]:
        return self.rows + self.columns


REPORT = PivotSpec(ROW, (), MEASURES, report=True)


@dataclass(frozen=True)
class TableGroup:
    """The cells of one table: `numbers` are their indices in `facts`, and `traits` their common
    values as text."""

    facts: CellFields
    numbers: list[int]
    traits: dict[str, str]
    title: str
    slug: str

    @property
    def trigger(self) -> str:
        return self.traits["trigger"]

    @property
    def cells(self) -> list[CellRecord]:
        return [self.facts.cells[number] for number in self.numbers]


def split(facts: CellFields, spec: PivotSpec = REPORT) -> list[TableGroup]:
    """Groups these cells into tables, in the order of the sweep. In the published report's layout,
    cells with unknown choices get a separate table; other layouts omit them."""
    apart = _every_trait(facts) if spec.report else splitting(facts, spec)
    members: dict[Any, list[int]] = {}
    for number, key in enumerate(facts.keys(apart)):
        if facts.of[number]:
            members.setdefault(key, []).append(number)
        elif spec.report:
            members.setdefault(None, []).append(number)
    traits = [_traits(facts, each[0], apart) for each in members.values()]
    if spec.report:
        traits = [{k.replace(CONFIG, "config ", 1): v for k, v in each.items()} for each in traits]
    differing = telling([each for each in traits if each != UNKNOWN])
    taken: set[str] = set()
    groups = []
    for numbers, shared in zip(members.values(), traits, strict=True):
        title, slug = _names(spec, shared, differing, taken)
        taken.add(slug)
        groups.append(TableGroup(facts, numbers, shared, title, slug))
    return groups


def splitting(facts: CellFields, spec: PivotSpec) -> list[str]:
    """Returns the names of the fields that have a single value in each table: all except the axes,
    the seed, and fields that the axes determine."""
    others = [name for name in facts.names if name not in (*spec.axes, SEED)]
    again = {PROTOCOL + axis.rpartition(".")[2] for axis in spec.axes if axis.startswith(CONFIG)}
    repeated = facts.determined([name for name in others if name in again], spec.axes)
    others = [name for name in others if name not in repeated]
    if not set(DECIDING) & set(spec.axes):
        return others
    follows = [name for name in others if name.startswith(PROTOCOL) or name == "source"]
    differing = [name for name in follows if len(facts.values(name)) > 1]
    decided = facts.determined(differing, spec.axes)
    return [name for name in others if name not in decided]


def _every_trait(facts: CellFields) -> list[str]:
    """Returns the names whose values separate tables in the published report's layout: the trigger,
    then other choices, protocol values and config values, each of these sorted by name."""
    names = [name for name in facts.names if name not in ("trigger", SEED, *ROW)]
    return ["trigger", *sorted(names, key=lambda n: (n.startswith(CONFIG), "." in n, n))]


def _traits(facts: CellFields, number: int, apart: Iterable[str]) -> dict[str, str]:
    if not facts.of[number]:
        return UNKNOWN
    return {name: facts.word(number, name) for name in apart if name in facts.of[number]}


def telling(traits: Sequence[Mapping[str, str]]) -> list[str]:
    """Returns the names of the fields, other than the trigger, whose values differ between tables.

    A protocol option is included only if two tables with the same `protocol=` differ in it;
    otherwise the name of the protocol already tells them apart.
    """
    names = list(dict.fromkeys(name for each in traits for name in each if name != "trigger"))
    differing = [n for n in names if len({each.get(n) for each in traits}) > 1]
    apart = {each.get("protocol") for each in traits}
    return [
        name
        for name in differing
        if not name.startswith(PROTOCOL)
        or any(len({t.get(name) for t in traits if t.get("protocol") == p}) > 1 for p in apart)
    ]


def _names(
    spec: PivotSpec, traits: dict[str, str], differing: Sequence[str], taken: Iterable[str]
) -> tuple[str, str]:
    """Returns a title that states what the table shows and how it differs from other tables, and a
    slug: a unique and safe file name."""
    named = {k: traits.get(k, "not recorded") for k in differing} if traits != UNKNOWN else {}
    words = "-".join([traits.get("trigger", ""), *named.values()])
    trigger = {k: traits[k] for k in ("trigger",) if k in traits}
    shown = ", ".join(f"{name} {value}" for name, value in {**trigger, **named}.items())
    shown = trigger["trigger"] if traits == UNKNOWN else shown
    if spec.report:
        return shown, slug(words, json.dumps(traits), taken)
    asked = {option: getattr(spec, option) for option in OPTIONS}
    said = ", ".join(MEASURE[name].head for name in spec.values)
    parts = [*map(".".join, asked.values()), words]
    name = slug("_".join(filter(None, parts)), json.dumps([asked, traits]), taken)
    return ": ".join([said, *[shown] * bool(shown)]), name


def slug(name: str, full: str, taken: Iterable[str] = ()) -> str:
    """Returns `name` if it is a safe and unused file name, else a readable part of it with a
    hash."""
    try:
        if safe_name("table", name) not in taken:
            return name
    except ConfigError:
        pass
    readable = re.sub(r"[^a-z0-9_.-]+", "_", transcribed(name).lower())[:40]
    return f"{readable}-{hashlib.sha256(full.encode(errors='replace')).hexdigest()[:8]}"


def layout_of(given: Mapping[str, str], cells: Sequence[CellRecord]) -> PivotSpec:
    """Returns the layout for the options `rows`, `columns`, `values` (names separated by commas).

    Only `columns` may be empty. Raises ConfigError for an unknown name, and for a name on both
    axes.
    """
    empty = [key for key, value in given.items() if not value.strip() and key != "columns"]
    if empty:
        raise ConfigError(f"`{empty[0]}=` is empty: give at least one name, or omit the option")
    known, more = known_names(cells), config_names(cells)
    chosen = {
        key: measures_of(value, cells) if key == "values" else names(key, value, known, more)
        for key, value in given.items()
        if value.strip()
    }
    default = PivotSpec()
    spec = PivotSpec(*(chosen.get(option, getattr(default, option)) for option in OPTIONS))
    both = set(spec.rows) & set(spec.columns)
    if both:
        raise ConfigError(f"`rows` and `columns` both contain {', '.join(sorted(both))}")
    return spec


def as_json(specs: Sequence[PivotSpec]) -> str:
    """Returns layouts as JSON text; `remembered()` reads them after parsing."""
    entries = [{option: getattr(spec, option) for option in OPTIONS} for spec in specs]
    return json.dumps(entries, indent=1) + "\n"


def remembered(entries: Any, cells: Sequence[CellRecord]) -> list[PivotSpec]:
    """Returns the layouts in `entries`, which is the parsed output of `as_json()`. Skips invalid
    entries, and layouts with a name that does not exist for `cells`."""
    found = []
    for entry in entries if isinstance(entries, list) else []:
        try:
            found.append(layout_of({key: ",".join(entry[key]) for key in OPTIONS}, cells))
        except (ConfigError, KeyError, TypeError):
            continue
    return found
