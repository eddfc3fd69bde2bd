"""Versions of the triggers and defenses in records, and how tables show them.

A record states the versions in ``config.code``; if a record states none, all versions are 1.
Results of two versions are results of two methods. The version is therefore part of a method's
name, as in ``abl@2``, if it is not 1 or if cells with several versions are shown together. Among
several, code that was modified after its version was recorded also has a hash: ``abl@2+1f0c38e7``.
"""

from __future__ import annotations

import functools
import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from backdoor_lab.identity import HASH_SHOWN
from backdoor_lab.results.values import words

if TYPE_CHECKING:
    from backdoor_lab.results.records import CellRecord

SECTIONS = {"trigger": "triggers", "defense": "defenses"}
"""Maps trigger and defense to the sections of ``config.code`` that contain their versions."""
FIRST = "1"
_LABEL = re.compile(r"@\d+(\+[0-9a-f]+)?( with .*)?")


def version_of(cell: CellRecord, name: str) -> str | None:
    """Returns the version of a cell's trigger or defense: ``2``, or ``2 with spectral@3`` if this
    component uses another method whose version is not 1. Returns None if the cell has no result and
    no configuration."""
    return _version_of(cell, name, hashes=False)


def labels(cells: Sequence[CellRecord], name: str) -> list[str]:
    """Returns the trigger or defense of each cell as text. The version is appended if it is not 1,
    or if these cells have several versions of the method; in the latter case with a hash of code
    that was modified. A cell of unknown version, such as a missing cell, gets the version of the
    method's other cells if they all have the same one."""
    given = [words(cell.choices.get(name)) for cell in cells]
    found = [_version_of(cell, name, hashes=True) for cell in cells]
    known: dict[str, dict[str, str | None]] = defaultdict(dict)
    for word, version, cell in zip(given, found, cells, strict=True):
        if version is not None:
            known[word][version] = version_of(cell, name)
    return [_label(word, version, known[word]) for word, version in zip(given, found, strict=True)]


def versioned(cell: CellRecord, name: str) -> str:
    """Returns the trigger or defense of one cell as text, with its version if it is not 1."""
    return labels([cell], name)[0]


def unversioned(label: str) -> str:
    """Returns the name of the method in a label, without versions.

    >>> unversioned("abl@2"), unversioned("random@1 with spectral@2"), unversioned("abl")
    ('abl', 'random', 'abl')
    """
    found = _LABEL.search(label)
    return label[: found.start()] if found and found.end() == len(label) else label


def unrecorded(cell: CellRecord) -> set[str]:
    """Returns those components of a cell for whose code no version is recorded."""
    return set(_unrecorded(cell.config)) if cell.config is not None else set()


def same_code(code: Any) -> list[str]:
    """Returns the sorted names and versions of the modified components in ``config.code``. The
    version of a modified component contains a hash of its code."""
    sections = code.values() if isinstance(code, dict) else []
    return sorted(
        f"{name} {mark}"
        for names in sections
        if isinstance(names, dict)
        for name, mark in names.items()
        if "+" in str(mark)
    )


def _label(word: str, version: str | None, known: Mapping[str, str | None]) -> str:
    """`known` maps the versions of a method, with hashes, to those without."""
    if len(known) == 1:
        (version,) = known.values()
        return word if version == FIRST else f"{word}@{version}"
    return word if version is None else f"{word}@{version}"


def _version_of(cell: CellRecord, name: str, *, hashes: bool) -> str | None:
    if cell.config is None:
        return FIRST if cell.done else None
    return _versions(cell.config, hashes)[name]


@functools.lru_cache(8192)
def _versions(config: str, hashes: bool) -> dict[str, str]:
    values = json.loads(config)
    return {name: _version(values, name, section, hashes) for name, section in SECTIONS.items()}


@functools.lru_cache(4096)
def _unrecorded(config: str) -> frozenset[str]:
    code = json.loads(config).get("code")
    sections = [each for each in code.values() if isinstance(each, dict)] if code else []
    return frozenset(n for each in sections for n, mark in each.items() if _number(mark) == "0")


def _version(config: Mapping[str, Any], name: str, section: str, hashes: bool) -> str:
    code = config.get("code")
    marks = code.get(section) if isinstance(code, dict) else None
    if not isinstance(marks, dict) or not marks:
        return FIRST
    chosen = config.get(name)
    target = chosen.get("_target_") if isinstance(chosen, dict) else None
    own = str(target).split(".")[-2] if str(target).count(".") else ""
    own = own if own in marks else next(iter(marks))
    shown = _with_hash if hashes else _number
    parts = {part: shown(mark) for part, mark in sorted(marks.items()) if part != own}
    used = [f"{part}@{version}" for part, version in parts.items() if version not in ("0", FIRST)]
    # Version 0 is code that no version describes; its hash keeps its results apart.
    version = shown(marks[own])
    version = FIRST if version == "0" else version
    return f"{version} with {', '.join(used)}" if used else version


def _number(mark: Any) -> str:
    return str(mark).partition("+")[0]


def _with_hash(mark: Any) -> str:
    number, plus, code = str(mark).partition("+")
    return f"{number}{plus}{code[:HASH_SHOWN]}"
