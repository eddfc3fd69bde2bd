"""Which cell stands in which table and in which row.

One table per trigger, and per value of whatever else but target, ratio, defense and seed differs:
another choice, a resolved protocol value, or a config value that two cells of one row do not share.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from backdoor_lab.core.checks import safe_name
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.letters import transcribed
from backdoor_lab.results.records import Cell

ROW = ("target", "ratio", "defense")
APART = ("seed", *ROW)
UNREADABLE = "unreadable"
HASH = re.compile(r"[0-9a-f]{32,}")

Key = tuple[Any, ...]


@dataclass
class Group:
    """The cells of one table: row key -> cells. `traits` name what sets it apart, in words."""

    trigger: str
    traits: dict[str, str]
    rows: dict[Key, list[Cell]] = field(default_factory=dict)
    title: str = ""
    slug: str = ""

    @property
    def cells(self) -> list[Cell]:
        return [cell for row in self.rows.values() for cell in row]


def split(cells: Sequence[Cell]) -> list[Group]:
    """The tables of a sweep, and their rows, both in the order of first appearance."""
    protocols = adopt(cells, "protocol")
    varied = varied_config(cells)
    configs = adopt(cells, "config") if varied else []
    groups: dict[Key, Group] = {}
    for number, cell in enumerate(cells):
        traits = _traits(cell, protocols[number], configs[number] if varied else None, varied)
        group = groups.setdefault(tuple(traits.items()), Group(traits["trigger"], traits))
        group.rows.setdefault(row_key(cell), []).append(cell)
    _name(list(groups.values()))
    return list(groups.values())


def row_key(cell: Cell) -> Key:
    """What a row is told by; a cell of unknown choices has a row of its own."""
    return tuple(cell.choices[name] for name in ROW) if cell.choices else (cell.id, None, None)


def words(value: Any) -> str:
    """A JSON scalar (or anything else) as short text; of a long hash the first ten digits."""
    if isinstance(value, str):
        return value[:10] if HASH.fullmatch(value) else value
    if value is None or isinstance(value, (bool, dict, list)):
        return "any" if value is None else json.dumps(value)
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def ratio_words(ratio: Any, ratio_of: Any) -> str:
    """A ratio as text: ``5%``, or a number of images where it is one."""
    if ratio is None:
        return words(None)
    return words(ratio) if is_count(ratio, ratio_of) else f"{100 * ratio:.10g}%"


def is_count(ratio: float, ratio_of: Any) -> bool:
    """Whether a ratio is a number of images: `protocol.ratio_of` says so, or it is above 1, as a
    share never is (for cells whose protocol is not recorded)."""
    return bool(ratio_of == "count" or ratio > 1)


def adopt(cells: Sequence[Cell], what: str) -> list[Any]:
    """Each cell's protocol (or config); a cell without one takes that of its nearest neighbours
    that have one, if they agree."""
    known: dict[Key, list[Any]] = defaultdict(list)
    for cell in cells:
        value = getattr(cell, what)
        if value is not None:
            for family in _families(cell, what):
                if value not in known[family]:
                    known[family].append(value)
    return [_own_or_only(cell, what, known) for cell in cells]


def _own_or_only(cell: Cell, what: str, known: dict[Key, list[Any]]) -> Any:
    own = getattr(cell, what)
    if own is not None:
        return own
    nearest = next((known[f] for f in _families(cell, what) if f in known), [])
    return nearest[0] if len(nearest) == 1 else None


def _families(cell: Cell, what: str) -> list[Key]:
    """From near to far: the seeds of one cell; for a protocol, whose values defense, trigger and
    source may set, also the cells of the same of these, and all that call it by one name."""
    chosen = cell.choices
    near = [_family(cell)]
    if what == "protocol":
        names = ("protocol", "defense", "trigger", "source")
        near += [(what, *(chosen.get(name) for name in names)), (what, chosen.get("protocol"))]
    return near


def _family(cell: Cell) -> Key:
    return tuple(sorted((k, v) for k, v in cell.choices.items() if k != "seed" and v is not None))


def varied_config(cells: Sequence[Cell]) -> list[str]:
    """The config values (dotted names) in which two cells differ that would share a row; not those
    of the protocol that its resolved values tell already."""
    families: dict[Key, dict[str, Cell]] = defaultdict(dict)
    for cell in cells:
        if cell.config is not None:
            families[_family(cell)][cell.config] = cell
    varied: set[str] = set()
    for family in families.values():
        if len(family) > 1:
            varied |= _varied_among(list(family.values()))
    return sorted(varied)


def _varied_among(cells: Sequence[Cell]) -> set[str]:
    """The config values in which these cells differ and that some cell's protocol does not tell."""
    configs: list[dict[str, str]] = []
    untold: set[str] = set()
    for cell in cells:
        values = {k: words(v) for k, v in flat(json.loads(cell.config or "{}"))}
        told = {f"protocol.{k}": words(v) for k, v in (cell.protocol or {}).items()}
        configs.append(values)
        untold |= {name for name, value in values.items() if told.get(name) != value}
    unset = words(None)
    return {n for n in untold if len({each.get(n, unset) for each in configs}) > 1}


def flat(config: dict[str, Any], before: str = "") -> Iterable[tuple[str, Any]]:
    """The values of nested mappings under dotted names."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from flat(value, f"{before}{key}.")
        else:
            yield before + key, value


def _traits(
    cell: Cell, protocol: dict[str, Any] | None, config: str | None, varied: Iterable[str]
) -> dict[str, str]:
    if not cell.choices:
        return {"trigger": UNREADABLE}
    traits = {"trigger": str(cell.choices["trigger"])}
    traits |= {k: words(v) for k, v in sorted(cell.choices.items()) if k not in APART}
    resolved = {f"protocol.{k}": words(v) for k, v in sorted((protocol or {}).items())}
    resolved.pop("protocol.name", None)
    values = dict(flat(json.loads(config))) if config else {}
    unset = "any" if config else "not recorded"
    return traits | resolved | {f"config {n}": words(values.get(n, unset)) for n in varied}


def _name(groups: list[Group]) -> None:
    """Titles that name the trigger and what differs; slugs that are safe and unique in a folder."""
    differing = telling([group.traits for group in groups if group.trigger != UNREADABLE])
    taken: set[str] = set()
    for group in groups:
        named = {k: group.traits.get(k, "not recorded") for k in differing}
        if group.traits == {"trigger": UNREADABLE}:
            named = {}
        group.title = ", ".join([group.trigger, *(f"{k} {v}" for k, v in named.items())])
        whole = json.dumps(group.traits)
        group.slug = slug("-".join([group.trigger, *named.values()]), whole, taken)
        taken.add(group.slug)


def telling(traits: Sequence[dict[str, str]]) -> list[str]:
    """The traits beside the trigger that differ; a protocol's values only under one name."""
    names = list(dict.fromkeys(name for each in traits for name in each if name != "trigger"))
    differing = [n for n in names if len({each.get(n) for each in traits}) > 1]
    apart = {each.get("protocol") for each in traits}
    return [
        name
        for name in differing
        if not name.startswith("protocol.")
        or any(len({t.get(name) for t in traits if t.get("protocol") == p}) > 1 for p in apart)
    ]


def slug(name: str, full: str, taken: Iterable[str] = ()) -> str:
    """`name` if it may be part of a path and is free, else a readable part of it and a hash."""
    try:
        if safe_name("table", name) not in taken:
            return name
    except ConfigError:
        pass
    readable = re.sub(r"[^a-z0-9_.-]+", "_", transcribed(name).lower())[:40]
    return f"{readable}-{hashlib.sha256(full.encode(errors='replace')).hexdigest()[:8]}"
