"""Which cells stand in which table, what sets tables apart, and what they are called.

In the report's layout: one table per trigger, and per value of whatever else but target, ratio,
defense and seed differs. In any other: per value of everything that is on no axis but the seed,
and that no axis decides.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backdoor_lab.core.checks import safe_name
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.letters import transcribed
from backdoor_lab.core.options import names
from backdoor_lab.results.facts import (
    CONFIG,
    PROTOCOL,
    SEED,
    Facts,
    config_names,
    known_names,
    under_names,
)
from backdoor_lab.results.measures import MEASURE
from backdoor_lab.results.records import Cell

OPTIONS = ("rows", "columns", "values")
ROW = ("target", "ratio", "defense")
MEASURES = ("n_poisoned", "nat1", "asr1", "pois_left", "nat2", "asr2")
UNREADABLE = "unreadable"
UNKNOWN = {"trigger": UNREADABLE}
# What stands on an axis and decides other choices and protocol values along with it.
DECIDING = ("protocol", "defense", "trigger")


@dataclass(frozen=True)
class PivotSpec:
    """Names of choices (or ``protocol.*``, ``config.*``) for rows and columns, of measures.
    `report`: the reproduced report's layout, in which whatever differs beside the rows sets tables
    apart, the rows are in the order of the sweep and a column tells their status."""

    rows: tuple[str, ...] = ("target", "ratio")
    columns: tuple[str, ...] = ()
    values: tuple[str, ...] = ("nat2", "asr2", "pois_left")
    report: bool = False

    @property
    def axes(self) -> tuple[str, ...]:
        return self.rows + self.columns


REPORT = PivotSpec(ROW, (), MEASURES, report=True)


@dataclass(frozen=True)
class Group:
    """The cells of one table, by their numbers among `facts`. `traits` name what they share, in
    words."""

    facts: Facts
    numbers: list[int]
    traits: dict[str, str]
    title: str
    slug: str

    @property
    def trigger(self) -> str:
        return self.traits["trigger"]

    @property
    def cells(self) -> list[Cell]:
        return [self.facts.cells[number] for number in self.numbers]


def split(facts: Facts, spec: PivotSpec = REPORT) -> list[Group]:
    """The tables of these cells in the order of the sweep. Cells of unknown choices have a table of
    their own in the report's layout, and no place in any other."""
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
        groups.append(Group(facts, numbers, shared, title, slug))
    return groups


def splitting(facts: Facts, spec: PivotSpec) -> list[str]:
    """What sets tables apart: everything but the axes, the seed, and what the axes decide."""
    others = [name for name in facts.names if name not in (*spec.axes, SEED)]
    if not set(DECIDING) & set(spec.axes):
        return others
    follows = [name for name in others if name.startswith(PROTOCOL) or name == "source"]
    differing = [name for name in follows if len(facts.values(name)) > 1]
    decided = facts.determined(differing, spec.axes)
    return [name for name in others if name not in decided]


def _every_trait(facts: Facts) -> list[str]:
    """The trigger, then every other choice, protocol and config value, each kind sorted."""
    told = [name for name in facts.names if name not in ("trigger", SEED, *ROW)]
    return ["trigger", *sorted(told, key=lambda n: (n.startswith(CONFIG), "." in n, n))]


def _traits(facts: Facts, number: int, apart: Iterable[str]) -> dict[str, str]:
    if not facts.of[number]:
        return UNKNOWN
    return {name: facts.word(number, name) for name in apart if name in facts.of[number]}


def telling(traits: Sequence[Mapping[str, str]]) -> list[str]:
    """The traits beside the trigger that differ; a protocol's values only under one name."""
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
    """A title that says what the table shows and what differs; a slug that is safe and unique."""
    named = {k: traits.get(k, "not recorded") for k in differing} if traits != UNKNOWN else {}
    words = "-".join([traits.get("trigger", ""), *named.values()])
    told = [traits["trigger"]] if "trigger" in traits else []
    shown = ", ".join([*told, *(f"{name} {value}" for name, value in named.items())])
    if spec.report:
        return shown, slug(words, json.dumps(traits), taken)
    asked = {option: getattr(spec, option) for option in OPTIONS}
    said = ", ".join(MEASURE[name].head for name in spec.values)
    parts = [*map(".".join, asked.values()), words]
    name = slug("_".join(filter(None, parts)), json.dumps([asked, traits]), taken)
    return ": ".join([said, *[shown] * bool(shown)]), name


def slug(name: str, full: str, taken: Iterable[str] = ()) -> str:
    """`name` if it may be part of a path and is free, else a readable part of it and a hash."""
    try:
        if safe_name("table", name) not in taken:
            return name
    except ConfigError:
        pass
    readable = re.sub(r"[^a-z0-9_.-]+", "_", transcribed(name).lower())[:40]
    return f"{readable}-{hashlib.sha256(full.encode(errors='replace')).hexdigest()[:8]}"


def layout_of(given: Mapping[str, str], cells: Sequence[Cell]) -> PivotSpec:
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
    default = PivotSpec()
    spec = PivotSpec(*(chosen.get(option, getattr(default, option)) for option in OPTIONS))
    both = set(spec.rows) & set(spec.columns)
    if both:
        raise ConfigError(f"`rows` and `columns` both name {', '.join(sorted(both))}")
    return spec


def as_json(specs: Sequence[PivotSpec]) -> str:
    """Layouts as the text of a file that `remembered` reads."""
    entries = [{option: getattr(spec, option) for option in OPTIONS} for spec in specs]
    return json.dumps(entries, indent=1) + "\n"


def remembered(entries: Any, cells: Sequence[Cell]) -> list[PivotSpec]:
    """The layouts in such a file's JSON that these cells still have the names for; whatever else
    is in it is left aside."""
    found = []
    for entry in entries if isinstance(entries, list) else []:
        try:
            found.append(layout_of({key: ",".join(entry[key]) for key in OPTIONS}, cells))
        except (ConfigError, KeyError, TypeError):
            continue
    return found
