"""Which cell stands in which table and in which row.

One table per trigger, and per value of whatever else but target, ratio, defense and seed differs:
another choice, a resolved protocol value, or a config value that two cells of one row do not share.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from backdoor_lab.core.checks import safe_name
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.letters import transcribed
from backdoor_lab.results.facts import adopt, varied_config
from backdoor_lab.results.records import Cell
from backdoor_lab.results.values import flat, words

ROW = ("target", "ratio", "defense")
APART = ("seed", *ROW)
UNREADABLE = "unreadable"

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
