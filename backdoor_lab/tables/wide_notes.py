"""What is said below a table of any layout, and below a comparison."""

from __future__ import annotations

from collections.abc import Sequence

from backdoor_lab.core.errors import many
from backdoor_lab.results.facts import PROTOCOL, SEED, Facts
from backdoor_lab.results.measures import MEASURE
from backdoor_lab.results.values import words
from backdoor_lab.tables.notes import EVERY_CLASS, INTERVAL, seed_range, where
from backdoor_lab.tables.worth import cautions

EMPTY = "An empty place: the sweep has no such cell. A dash: the cell has no such figure."
VERSION = f"{PROTOCOL}version"
_LISTED, _FEW = 12, 3


def notes_of(
    facts: Facts, members: Sequence[int], axes: Sequence[str], values: Sequence[str],
    shared: dict[str, str],
) -> list[str]:  # fmt: skip
    """The lines below one table: `members` are the numbers of its cells, `shared` their traits."""
    cells = [facts.cells[number] for number in members]
    seeds = sorted({cell.choices[SEED] for cell in cells})
    told = [f"{k} {v}" for k, v in shared.items() if k != "protocol" and not k.startswith(PROTOCOL)]
    told.append(f"{'seeds' if len(seeds) > 1 else 'seed'} {seed_range(seeds)}")
    told.append(f"{sum(cell.done for cell in cells)} of {many(len(cells), 'cell')} done")
    several = len(seeds) > 1 and SEED not in axes
    return [
        *protocols(facts, members, axes), f"{'; '.join(told)}.", *_open(facts, members, axes),
        *_unplaced(facts), *where(cells), reading(values), *[INTERVAL] * several, EMPTY,
        *cautions(cells, values),
    ]  # fmt: skip


def protocols(facts: Facts, members: Sequence[int], axes: Sequence[str] = ()) -> list[str]:
    """One line for each protocol: its values, and where they differ, for what."""
    found: dict[str, list[int]] = {}
    for number in members:
        version = facts.of[number].get(VERSION)
        name = f"{facts.word(number, 'protocol')}@{1 if version is None else words(version)}"
        found.setdefault(name, []).append(number)
    lines = []
    for name, numbers in found.items():
        keys = sorted({key for n in numbers for key in facts.of[n] if key.startswith(PROTOCOL)})
        keys = [key for key in keys if key != VERSION]
        said = [f"{key.removeprefix(PROTOCOL)}={_value(facts, numbers, key, axes)}" for key in keys]
        lines.append(f"Protocol {name}: {', '.join(said) or 'values not recorded'}.")
    every = any(facts.of[number].get(f"{PROTOCOL}labels") == "all_to_all" for number in members)
    return lines + [EVERY_CLASS] * every


def _value(facts: Facts, numbers: Sequence[int], key: str, axes: Sequence[str]) -> str:
    """``1.5eps``, or ``1.5eps (spectral) | 15% (scan)`` where the defense decides it; a value that
    is most frequent, and that of more than three, comes last as ``(all others)``."""
    values = dict.fromkeys(facts.word(n, key) for n in numbers)
    if len(values) == 1 or key in axes:
        return " | ".join(values)
    for axis in axes:
        by: dict[str, set[str]] = {}
        for n in numbers:
            by.setdefault(facts.word(n, axis), set()).add(facts.word(n, key))
        if all(len(each) == 1 for each in by.values()):
            whose = {value: [n for n, each in by.items() if value in each] for value in values}
            most = max(whose, key=lambda value: len(whose[value]))
            if len(whose[most]) > _FEW:
                del whose[most]
                whose[most] = ["all others"]
            return " | ".join(f"{value} ({', '.join(said)})" for value, said in whose.items())
    return " | ".join(values)


def _open(facts: Facts, members: Sequence[int], axes: Sequence[str]) -> list[str]:
    """The cells that are not done, with their reason."""
    names = [name for name in axes if name != SEED]
    left = [
        f"{', '.join([*facts.key(n, names), f'seed {words(facts.of[n][SEED])}'])}:"
        f" {facts.cells[n].status}"
        for n in members
        if not facts.cells[n].done
    ]
    more = f"; and {len(left) - _LISTED} more" if len(left) > _LISTED else ""
    return [f"Not done: {'; '.join(left[:_LISTED])}{more}."] if left else []


def _unplaced(facts: Facts) -> list[str]:
    """The records of which nobody can tell where they stand."""
    lost = [f"{cell.id} ({cell.status})" for cell in facts.cells if not cell.choices]
    more = f" and {len(lost) - _LISTED} more" if len(lost) > _LISTED else ""
    return [f"In no place: {', '.join(lost[:_LISTED])}{more}."] if lost else []


def reading(values: Sequence[str]) -> str:
    """What each measure is."""
    return " ".join(f"{MEASURE[name].head}: {MEASURE[name].says}." for name in values)
