"""Several data sets in one sweep: expands glob patterns of paths, and gives each data set a
label."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import Glob, Override, Quote, QuotedString

from backdoor_lab.core.errors import ConfigError
from backdoor_lab.sweep.manifest import RequestedCell

if TYPE_CHECKING:
    from backdoor_lab.pipeline.cell import Cell

KEY = "dataset.root"


def with_patterns(overrides: Sequence[Override]) -> list[str]:
    """Returns the overrides as text. Glob patterns in `dataset.root` (``sets/*.npz``) are replaced
    by the sorted paths that match. Raises ConfigError if a pattern matches nothing."""
    return [_replaced(each) for each in overrides]


def labels_of(cells: Sequence[Cell]) -> dict[str, str]:
    """Maps cell ids to labels that distinguish data sets of the same name: the part of each path
    that differs from the other paths. Omits cells whose data set has a unique name."""
    by_name: dict[str, dict[str, list[Cell]]] = {}
    for cell in cells:
        settings = cell.config["dataset"]
        if settings["name"] is None and isinstance(settings.get("root"), str):
            sets = by_name.setdefault(str(cell.choices["dataset"]), {})
            sets.setdefault(cell.fingerprint, []).append(cell)
    found: dict[str, str] = {}
    for sets in by_name.values():
        if len(sets) > 1:
            groups = list(sets.values())
            paths = [_parts(group[0].config["dataset"]["root"]) for group in groups]
            for group, label in zip(groups, apart(paths), strict=True):
                found |= {cell.id: label for cell in group}
    return found


def apart(paths: Sequence[tuple[str, ...]]) -> list[str]:
    """Shortens distinct paths, given as tuples of parts, by removing their common prefix and their
    common suffix. If this would leave a path empty, returns the last n parts of every path, with
    the smallest n that keeps the paths distinct."""
    first, last = (_alike(paths), _alike([path[::-1] for path in paths]))
    middles = [path[first : len(path) - last] for path in paths]
    if not all(middles):
        longest = max(map(len, paths))
        ends = ([path[-n:] for path in paths] for n in range(1, longest + 1))
        middles = next((each for each in ends if len(set(each)) == len(paths)), list(paths))
    return ["/".join(middle) for middle in middles]


def _alike(paths: Sequence[tuple[str, ...]]) -> int:
    """The number of leading parts that all paths have in common."""
    return next(
        (n for n, parts in enumerate(zip(*paths, strict=False)) if len(set(parts)) > 1),
        min(map(len, paths)),
    )


def _parts(root: str) -> tuple[str, ...]:
    return Path(os.path.abspath(Path(root).expanduser())).parts


def _replaced(override: Override) -> str:
    text = str(override.input_line)
    if override.key_or_group != KEY or override.is_delete():
        return text
    given, left_out = _given(override)
    if not (left_out or any(map(_is_pattern, given))):
        return text
    sign = text[: len(text) - len(text.lstrip("+"))]
    paths = [path for value in given for path in _matches(value)]
    paths = [path for path in paths if not any(fnmatch(path, each) for each in left_out)]
    return f"{sign}{KEY}={','.join(map(quoted, paths))}"


def _given(override: Override) -> tuple[list[str], list[str]]:
    """The paths and patterns of an override, and the patterns that ``glob(…,exclude=…)``
    excludes."""
    value = override._value
    if isinstance(value, Glob):
        return [*value.include], [*value.exclude]
    if override.is_sweep_override():
        return [_text(each) for each in override.sweep_iterator()], []
    return [_text(override.value())], []


def _text(value: Any) -> str:
    return value.text if isinstance(value, QuotedString) else str(value)


def _is_pattern(value: str) -> bool:
    path = os.path.expanduser(value)
    return glob.has_magic(path) and not os.path.lexists(path)


def _matches(value: str) -> list[str]:
    if not _is_pattern(value):
        return [value]
    found = sorted(glob.glob(os.path.expanduser(value)))
    if not found:
        raise ConfigError(f"`{KEY}`: nothing matches the pattern {value}")
    return found


def quoted(path: str) -> str:
    """Quote and escape `path` as a value in Hydra's grammar."""
    return QuotedString(path, Quote.single).with_quotes()


def requested(cell: Cell, job: Sequence[str], label: str | None) -> RequestedCell:
    """Returns the request for a cell: `job` are its overrides, `label` names its data set in
    tables."""
    config, choices = cell.config, cell.choices
    if label is not None:
        choices = choices | {"dataset": label}
        job = [*job, f"dataset_label={quoted(label)}"]
    retries, fail_fast = int(config.get("retries", 1)), bool(config.get("fail_fast"))
    return RequestedCell(cell.id, choices, cell.attack, tuple(job), retries, fail_fast)
