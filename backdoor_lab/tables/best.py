"""Which figures of a table are better than all that they compete with, by a paired test."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from backdoor_lab.analysis.paired import paired
from backdoor_lab.core.errors import many
from backdoor_lab.results.facts import SEED
from backdoor_lab.results.measures import MEASURE, before_defense, figure_of
from backdoor_lab.results.records import Cell
from backdoor_lab.tables.layout import PivotSpec

if TYPE_CHECKING:
    from backdoor_lab.tables.pivot import Key, PivotCell

DEFENSE = "defense"
LEVEL = 0.05
NO_COMPETITORS = ("oracle", "clean_data")
"""The controls that are told which images are poisoned: they set the mark, and win nothing."""
NO_CONTEST = ("ratio", "seed", "trigger", "target", "source", "dataset")
"""What tells tasks apart: another attack or set of images is not a better one."""
_NEEDS_ATTACK = ("asr2", "asr_elsewhere2")
"""Where there was no attack, a low figure is no merit of a defense."""
Winner = tuple["Key", "Key", str]
Cells = Mapping[tuple["Key", "Key"], "PivotCell"]

TEST = (
    "Bold: the best mean {}, where the paired t test over seeds separates it from the next best"
    " (the same seeds on both sides, two-sided, p < 0.05, not corrected for the number of tests),"
    " and no ASR2 where ASR1 shows no attack{}. {}."
)
OF_DEFENSES = "of the defenses against one attack"
OF_ROW = "of a row against one attack"
TOLD = "; oracle and clean_data, which are told the truth, take no part"
ONE_SEED = "Nothing is bold: every figure is of one seed, and no test was made."
NO_RIVALS = "Nothing is bold: no two figures compete, and no test was made. {}."


def best(cells: Cells, spec: PivotSpec) -> frozenset[Winner]:
    """Row, column and measure of the best values: among the defenses against one attack where the
    defense is on an axis, else among the columns of a row. None where the paired t test over seeds
    does not separate the best mean from the next."""
    found: set[Winner] = set()
    for name, where in _contests(cells, spec):
        ranked = sorted(where, key=lambda at: -MEASURE[name].better * _mean(cells[at], name))
        if separated(*(cells[at].seeds.get(name, {}) for at in ranked[:2])):
            found.add((*ranked[0], name))
    return frozenset(found)


def separated(one: Mapping[int, float], other: Mapping[int, float]) -> bool:
    """Whether a paired t test tells two figures apart that are known by seed. Never where a seed
    is known on one side alone, or where all differ by one and the same amount: then none is
    defined."""
    if one.keys() != other.keys() or len(one) < 2:
        return False
    # Ten digits: equal differences of fractions stay equal after binary arithmetic.
    found = paired([round(one[seed] - other[seed], 10) for seed in one])
    return found.t is not None and found.t < LEVEL


def by_seed(cells: Iterable[Cell], name: str) -> dict[int, float]:
    """The figure of every done cell by its seed."""
    return {c.choices[SEED]: c.numbers[name] for c in cells if c.done and name in c.numbers}


def bold_note(cells: Cells, spec: PivotSpec) -> list[str]:
    """Which test says what is bold, and over how many seeds; nothing where nothing is done."""
    counts = sorted({cell.done for cell in cells.values() if cell.done})
    if not counts or counts[-1] < 2:
        return [ONE_SEED] * bool(counts)
    seeds = f"{counts[0]} to {many(counts[-1], 'seed')}" if counts[1:] else many(counts[0], "seed")
    if not any(True for _ in _contests(cells, spec)):
        return [NO_RIVALS.format(seeds)]
    among = (OF_DEFENSES, TOLD) if DEFENSE in spec.axes else (OF_ROW, "")
    return [TEST.format(*among, seeds)]


def _contests(cells: Cells, spec: PivotSpec) -> Iterable[tuple[str, list[tuple[Key, Key]]]]:
    """The measures that tell good from bad, and the places of at least two figures that compete."""
    groups: dict[object, list[tuple[Key, Key]]] = {}
    for row, column in cells:
        contest, defense = _contest(spec, row, column)
        if defense not in NO_COMPETITORS:
            groups.setdefault(contest, []).append((row, column))
    names = [name for name in spec.values if MEASURE[name].better]
    if DEFENSE in spec.axes:
        names = [name for name in names if not before_defense(name)]
    for where in groups.values():
        for name in names:
            competing = [at for at in where if _competes(cells[at], name)]
            if len(competing) > 1:
                yield name, competing


def _contest(spec: PivotSpec, row: Key, column: Key) -> tuple[object, str]:
    """What the competitors have in common, and the defense."""
    if DEFENSE not in spec.axes:
        named = zip(spec.columns, column, strict=True)
        return (row, *(word for name, word in named if name in NO_CONTEST)), ""
    at = spec.axes.index(DEFENSE)
    key = row + column
    return (key[:at] + key[at + 1 :]), key[at]


def _competes(cell: PivotCell, name: str) -> bool:
    needs_attack = figure_of(name) in _NEEDS_ATTACK
    return name in cell.estimates and (cell.attacked or not needs_attack)


def _mean(cell: PivotCell, name: str) -> float:
    return cell.estimates[name].mean
