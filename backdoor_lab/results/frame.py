"""The tidy data frame with one row per cell. `export` writes the frame to a file; tables and pages
are made from it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from backdoor_lab.core.validation import is_number
from backdoor_lab.results.columns import COLUMNS, is_count, is_float
from backdoor_lab.results.values import by_key, sorted_text
from backdoor_lab.results.versions import SECTIONS, version_of

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]

    from backdoor_lab.results.facts import CellFields

_RUN = ("started", "device", "git_commit", "command")


def frame_of(facts: CellFields) -> pd.DataFrame:
    """Returns a frame with the columns of `COLUMNS` and one row per cell of `facts`, whatever its
    status."""
    import pandas as pd

    found = _values(facts)
    nothing = [None] * len(facts.cells)
    names = _columns(found)
    return pd.DataFrame({name: _column(name, found.get(name, nothing)) for name in names})


def _columns(found: Iterable[str]) -> list[str]:
    """Returns the names in `COLUMNS`. A name that ends in ``*`` is replaced by the names in `found`
    that begin with the part before the ``*``."""
    there = sorted(found)
    columns = []
    for name in COLUMNS:
        family = name.removesuffix("*")
        columns += [name] if family == name else [n for n in there if n.startswith(family)]
    return columns


def _values(facts: CellFields) -> dict[str, list[Any]]:
    """Returns the values of all cells by column name, including names that are not in `COLUMNS`."""
    cells, nothing = facts.cells, [None] * len(facts.cells)
    run = defaultdict(lambda: nothing, by_key([cell.run for cell in cells]))
    memory = [c.run.get("process_peak_memory_mib", c.run.get("peak_memory_mib")) for c in cells]
    return {
        "sweep": facts.sweeps, "id": [cell.id for cell in cells],
        "status": [cell.status for cell in cells], "error": [cell.error for cell in cells],
        **facts.as_columns(),
        **{f"{name}_version": [version_of(cell, name) for cell in cells] for name in SECTIONS},
        **by_key([cell.numbers for cell in cells]),
        **by_key([cell.top_class for cell in cells]),
        "notes": [sorted_text(cell.notes) if cell.notes else None for cell in cells],
        **{name: run[name] for name in _RUN},
        "peak_memory_mib": _numbers(memory),
        "wall_seconds": _numbers(run["wall_seconds"]),
        **_family("applied.", [cell.applied for cell in cells]),
        **_family("compute.", run["compute"]),
        **_family("versions.", run["versions"]),
        **{k: _numbers(v) for name in ("seconds", "images_per_s")
           for k, v in _family(f"{name}.", run[name]).items()},
        **_family("hashes.", [cell.hashes for cell in cells]),
    }  # fmt: skip


def _family(before: str, of: Sequence[Any]) -> dict[str, list[Any]]:
    """Returns a column for each key that occurs in the mappings `of`, one mapping (or None) per
    cell. The name of a column is the key with the prefix `before`."""
    found = by_key([each if isinstance(each, dict) else {} for each in of])
    return {before + key: values for key, values in found.items()}


def _numbers(values: list[Any]) -> list[Any]:
    """Replaces values that are not numbers with None, since records are not validated here."""
    # Performance: in nearly all columns, all values are finite floats.
    if set(map(type, values)) == {float} and all(map(math.isfinite, values)):
        return values
    return [value if is_number(value) else None for value in values]


def _column(name: str, values: list[Any]) -> Any:
    import numpy as np
    import pandas as pd

    if is_float(name):
        return np.array(values, dtype=np.float64)
    if is_count(name):
        # Not converted to float, which cannot represent every seed above 2**53.
        whole = np.array([0 if value is None else round(value) for value in values], dtype=np.int64)
        empty = np.array([value is None for value in values], dtype=bool)
        return pd.arrays.IntegerArray(whole, empty)
    first = values[0] if values else None
    if values.count(first) == len(values):
        # Performance: most columns have the same value (or none) for all cells.
        one = pd.array([pd.NA if first is None else _text(first)], dtype="string")
        return one.repeat(len(values))
    return pd.array([pd.NA if value is None else _text(value) for value in values], dtype="string")


def _text(value: Any) -> str:
    """Returns valid UTF-8 text: a lone surrogate, which JSON may contain, is escaped."""
    if isinstance(value, str) and value.isascii():
        return value
    return str(value).encode("utf-8", errors="backslashreplace").decode()
