"""Converts values of a record to text: scalars, ratios, nested mappings."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

sorted_text = json.JSONEncoder(sort_keys=True).encode
HASH = re.compile(r"[0-9a-f]{32,}")


def words(value: Any) -> str:
    """Returns a JSON value as short text. Null becomes "any"; a long hash is cut to ten digits.

    >>> words(0.1), words(True), words(None)
    ('0.1', 'true', 'any')
    """
    if isinstance(value, str):
        return value[:10] if len(value) > 31 and HASH.fullmatch(value) else value
    if value is None or isinstance(value, (bool, dict, list)):
        return "any" if value is None else json.dumps(value)
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def ratio_words(ratio: Any, ratio_of: Any) -> str:
    """Returns a ratio as text: in percent, or as a number of images.

    >>> ratio_words(0.05, "target"), ratio_words(500, "count")
    ('5%', '500')
    """
    if ratio is None:
        return words(None)
    return words(ratio) if is_count(ratio, ratio_of) else f"{100 * ratio:.10g}%"


def is_count(ratio: float, ratio_of: Any) -> bool:
    """Whether a ratio is a number of images: `protocol.ratio_of` is ``count`` or, for cells without
    a recorded protocol, the ratio is above 1."""
    return bool(ratio_of == "count" or ratio > 1)


def by_key(mappings: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Returns the values of each key, one per mapping; None for a mapping without the key."""
    keys = list(mappings[0]) if mappings else []
    lines: list[Collection[Any]] = [each.values() for each in mappings]
    # Performance: nearly always, all mappings have the same keys in the same order.
    if not all([*each] == keys for each in mappings):
        sets = dict.fromkeys(map(tuple, mappings))
        keys = list(dict.fromkeys(key for each in sets for key in each))
        # Performance: all keys of one mapping at a time is several times faster than one at a time.
        lines = [[*map(each.get, keys)] for each in mappings]
    return dict(zip(keys, map(list, zip(*lines, strict=True)), strict=True))


def each_once(function: Callable[[Any], T], values: Sequence[Any]) -> list[T]:
    """Returns ``[function(value) for value in values]``, but calls `function` only once per object:
    records share objects with equal values. Objects are distinguished by identity rather than
    ``==``, since ``1 == True``."""
    distinct = {id(value): value for value in values}
    made = {key: function(value) for key, value in distinct.items()}
    return [made[id(value)] for value in values]


def sort_value(value: Any, counts: bool = False) -> tuple[bool, float] | None:
    """Returns a sort key for a number; None if `value` is not a number. Set `counts` if `value` is
    a number of images: numbers of images sort after fractions."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return (counts, value) if is_number else None


def flat(config: dict[str, Any], before: str = "") -> Iterable[tuple[str, Any]]:
    """Yields the values of nested mappings with dotted names, such as ``recipe.lr``."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from flat(value, f"{before}{key}.")
        else:
            yield before + key, value
