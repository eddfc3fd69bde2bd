"""One value checker and one message form: "`ratio` must satisfy 0 <= ratio <= 1, got nan"."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from backdoor_lab.core.errors import ConfigError, unknown

LARGEST = 2**31
"""Where no other bound is named: what every library here can hold and count."""
LONGEST = 1e9
"""Seconds that a record may claim for a stage or a cell: more than thirty years."""
NAME = re.compile(r"[a-z0-9_.-]{1,64}\Z")


def is_number(value: Any) -> bool:
    """Whether `value` is a finite number that a float can hold; true and false are none."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def non_negative(value: Any, *, high: float = math.inf) -> float | None:
    """`value`, of a file that anyone may have written, as a float if it is a finite number with
    ``0 <= value <= high``; else None."""
    return float(value) if is_number(value) and 0 <= value <= high else None


def number(name: str, value: Any, *, low: float = -math.inf, below: float = math.inf) -> float:
    """`value` as a float with ``low <= value < below``; text, bool and NaN are refused."""
    if not is_number(value) or not low <= value < below:
        raise ConfigError(f"`{name}` must {_span(name, low, below)}, got {value!r}")
    return float(value)


def share(name: str, value: Any) -> float:
    """`value` as a float with ``0 <= value <= 1``; text, bool and NaN are refused."""
    if not is_number(value) or not 0 <= value <= 1:
        raise ConfigError(f"`{name}` must satisfy 0 <= {name} <= 1, got {value!r}")
    return float(value)


def whole(name: str, value: Any, *, low: float = 0, below: float = math.inf) -> int:
    """`value` as an int with ``low <= value < below``; 3.0 counts as whole, 3.5 does not."""
    number(name, value, low=low, below=below)
    # Not by way of float, which cannot hold every int above 2**53.
    if value != int(value):
        raise ConfigError(f"`{name}` must be a whole number, got {value!r}")
    if below == math.inf and value >= LARGEST:
        raise ConfigError(f"`{name}` must be smaller than 2**31, got {value!r}")
    return int(value)


def choice(name: str, value: Any, known: Iterable[Any]) -> Any:
    """`value` if it is one of `known`."""
    known = list(known)
    if value not in known:
        raise unknown(f"`{name}`", value, known)
    return value


def text(name: str, value: Any) -> str:
    """`value` if it is text and not empty."""
    if not isinstance(value, str) or not value:
        raise ConfigError(f"`{name}` must be a name, got {value!r}")
    return value


def flag(name: str, value: Any) -> bool:
    """`value` if it is true or false."""
    if not isinstance(value, bool):
        raise ConfigError(f"`{name}` must be true or false, got {value!r}")
    return value


def keys(where: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Refuses keys that nobody reads."""
    known = list(known)
    for key in given:
        if key not in known:
            raise unknown(f"key in `{where}`" if where else "key", key, known)


def safe_name(name: str, value: Any) -> str:
    """`value` if it may become part of a path: matches [a-z0-9_.-]{1,64}, not '.' or '..'."""
    if not isinstance(value, str) or not NAME.match(value) or set(value) == {"."}:
        raise ConfigError(f"`{name}` must match [a-z0-9_.-]{{1,64}}, got {value!r}")
    return value


def inside(root: Path, path: Path) -> Path:
    """`path` resolved, if it stays under `root` (symbolic links followed)."""
    resolved = path.resolve()
    if not resolved.is_relative_to(root.resolve()):
        raise ConfigError(f"path {path} leaves its root {root}")
    return resolved


def _span(name: str, low: float, below: float) -> str:
    left = "" if low == -math.inf else f"{_shown(low)} <= "
    right = "" if below == math.inf else f" < {_shown(below)}"
    return f"satisfy {left}{name}{right}" if left or right else "be a finite number"


def _shown(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"
