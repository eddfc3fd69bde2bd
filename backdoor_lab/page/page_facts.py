"""Flattens records into dotted names and values as text. Values common to all records are stored
once."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backdoor_lab.core.terminal import plain

LEFT_OUT = ("poison_indices", "detection.curve", "per_class")
_LONGEST = 2000
_DEEPEST = 8


@dataclass(frozen=True)
class PageFields:
    """The values of several records, as text. `common` maps dotted names to values that are equal
    in all records. `names` are all other names. `own` has one list per record: the values of
    `names`, in this order, with None for missing ones."""

    common: dict[str, str]
    names: list[str]
    own: list[list[str | None]]


def facts(records: Sequence[Mapping[str, Any]]) -> PageFields:
    """Flatten `records`, without their long lists of indices. A cell that has not run has an empty
    record, which is ignored when the common values are determined."""
    flats = [dict(_flat(record)) for record in records]
    names = list(dict.fromkeys(name for flat in flats for name in flat))
    nonempty = [flat for flat in flats if flat]
    common = {
        name: nonempty[0][name]
        for name in names
        if len(nonempty) > 1 and all(flat.get(name) == nonempty[0].get(name) for flat in nonempty)
    }
    differing = [name for name in names if name not in common]
    return PageFields(common, differing, [[flat.get(name) for name in differing] for flat in flats])


def _flat(values: Mapping[str, Any], before: str = "", depth: int = 0) -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        name = plain(f"{before}{key}")
        if name in LEFT_OUT:
            continue
        if isinstance(value, dict) and value and depth < _DEEPEST:
            yield from _flat(value, f"{before}{key}.", depth + 1)
        else:
            yield name, _text(value)


def _text(value: Any) -> str:
    """Convert a value to one printable line."""
    if value is None:
        return "none"
    if isinstance(value, str):
        text = value
    elif isinstance(value, float) and math.isfinite(value):
        text = f"{value:.10g}"
    else:
        text = json.dumps(value)
    text = plain(text)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
