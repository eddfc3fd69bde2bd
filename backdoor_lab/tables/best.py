"""Finds the values in a table that are significantly better than all competing values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from backdoor_lab.analysis.paired import paired
from backdoor_lab.core.errors import many
from backdoor_lab.results.facts import SEED
from backdoor_lab.results.metrics import MEASURE, before_defense, figure_of
from backdoor_lab.results.records import CellRecord
from backdoor_lab.results.versions import unversioned
from backdoor_lab.tables.layout import PivotSpec

if TYPE_CHECKING:
    from backdoor_lab.tables.pivot import Key, PivotCell

DEFENSE = "defense"
LEVEL = 0.05
NO_COMPETITORS = ("oracle", "clean_data")
"""Controls that know which images are poisoned; they serve as upper bounds and are not ranked."""
NO_CONTEST = ("ratio", "seed", "trigger", "target", "source", "dataset")
"""Choices that define a task; values of different tasks do not compete."""
_NEEDS_ATTACK = ("asr2", "asr_elsewhere2")
"""Measures that compete only if the attack works: without an attack they are low for any
defense."""
Winner = tuple["Key", "Key", str]
Cells = Mapping[tuple["Key", "Key"], "PivotCell"]

TEST = (
    "Bold: the best mean {}, if a paired t test over seeds separates it from the second best (the"
    " same seeds on both sides, two-sided, p < 0.05, not corrected for the number of tests). ASR2"
    " is never bold where ASR1 shows no attack.{} {}."
)
OF_DEFENSES = "of the defenses against one attack"
OF_ROW = "of a row against one attack"
NOT_RANKED = " oracle and clean_data know the ground truth and are excluded."
ONE_SEED = "Nothing is bold: all values are from one seed, so no test was made."
NO_RIVALS = "Nothing is bold: no two values compete, so no test was made. {}."


def best(cells: Cells, spec: PivotSpec) -> frozenset[Winner]:
    """Returns the row, column and measure of each best value. If the defense is on an axis, the
    defenses against one attack compete; otherwise, the values in a row compete. A best value is
    omitted unless a paired t test over seeds separates its mean from the second best mean."""
    found: set[Winner] = set()
    for name, where in _contests(cells, spec):
        ranked = sorted(where, key=lambda at: -MEASURE[name].better * _mean(cells[at], name))
        if separated(*(cells[at].seeds.get(name, {}) for at in ranked[:2])):
            found.add((*ranked[0], name))
    return frozenset(found)


def separated(one: Mapping[int, float], other: Mapping[int, float]) -> bool:
    """Whether a paired t test finds a significant difference between `one` and `other`, which map
    seeds to values. False if their seeds differ, or if the test is undefined: with a single seed,
    or if all differences are equal."""
    if one.keys() != other.keys() or len(one) < 2:
        return False
    # Round to ten digits: equal differences of fractions must stay equal in binary arithmetic.
    found = paired([round(one[seed] - other[seed], 10) for seed in one])
    return found.t is not None and found.t < LEVEL


def by_seed(cells: Iterable[CellRecord], name: str) -> dict[int, float]:
    """Maps seeds to the values of the measure `name` in the completed cells."""
    return {c.choices[SEED]: c.numbers[name] for c in cells if c.done and name in c.numbers}


def bold_note(cells: Cells, spec: PivotSpec) -> list[str]:
    """Returns a note on the significance test that decides which values are bold, and on the number
    of seeds. Empty if there are no completed cells."""
    counts = sorted({cell.done for cell in cells.values() if cell.done})
    if not counts or counts[-1] < 2:
        return [ONE_SEED] * bool(counts)
    seeds = f"{counts[0]} to {many(counts[-1], 'seed')}" if counts[1:] else many(counts[0], "seed")
    if not any(True for _ in _contests(cells, spec)):
        return [NO_RIVALS.format(seeds)]
    among = (OF_DEFENSES, NOT_RANKED) if DEFENSE in spec.axes else (OF_ROW, "")
    return [TEST.format(*among, seeds)]


def _contests(cells: Cells, spec: PivotSpec) -> Iterable[tuple[str, list[tuple[Key, Key]]]]:
    """Yields pairs of a measure and the positions whose values of this measure compete.

    Skips measures for which neither high nor low values are better. If defenses compete, also skips
    measures taken before the defense.
    """
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
    """Returns a key that is equal for competing positions, and the defense at the position (`row`,
    `column`). The defense is an empty string if no axis shows defenses."""
    if DEFENSE not in spec.axes:
        named = zip(spec.columns, column, strict=True)
        return (row, *(word for name, word in named if name in NO_CONTEST)), ""
    at = spec.axes.index(DEFENSE)
    key = row + column
    return (key[:at] + key[at + 1 :]), unversioned(key[at])


def _competes(cell: PivotCell, name: str) -> bool:
    needs_attack = figure_of(name) in _NEEDS_ATTACK
    return name in cell.estimates and (cell.attacked or not needs_attack)


def _mean(cell: PivotCell, name: str) -> float:
    return cell.estimates[name].mean
