"""Which figures of a table are the best of those that compete."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from backdoor_lab.results.measures import MEASURE, before_defense, figure_of
from backdoor_lab.tables.estimates import Estimate
from backdoor_lab.tables.layout import PivotSpec

if TYPE_CHECKING:
    from backdoor_lab.tables.pivot import Key, PivotCell

DEFENSE = "defense"
NO_COMPETITORS = ("oracle", "clean_data")
"""The controls that are told which images are poisoned: they set the mark, and win nothing."""
NO_CONTEST = ("ratio", "seed", "trigger", "target", "source", "dataset")
"""What tells tasks apart: another attack or set of images is not a better one."""
_NEEDS_ATTACK = ("asr2", "asr_elsewhere2")
"""Where there was no attack, a low figure is no merit of a defense."""
Winner = tuple["Key", "Key", str]


def best(cells: Mapping[tuple[Key, Key], PivotCell], spec: PivotSpec) -> frozenset[Winner]:
    """Row, column and measure of the best values: among the defenses against one attack where the
    defense is on an axis, else among the columns of a row."""
    contests: dict[object, list[tuple[Key, Key]]] = {}
    for row, column in cells:
        contest, defense = _contest(spec, row, column)
        if defense not in NO_COMPETITORS:
            contests.setdefault(contest, []).append((row, column))
    found: set[Winner] = set()
    for where in contests.values():
        for name in spec.values:
            values = [_competing(name, cells[each]) for each in where]
            if not before_defense(name) or DEFENSE not in spec.axes:
                found |= {(*where[winner], name) for winner in best_of(name, values)}
    return frozenset(found)


def _contest(spec: PivotSpec, row: Key, column: Key) -> tuple[object, str]:
    """What the competitors have in common, and the defense."""
    if DEFENSE not in spec.axes:
        named = zip(spec.columns, column, strict=True)
        return (row, *(word for name, word in named if name in NO_CONTEST)), ""
    at = spec.axes.index(DEFENSE)
    key = row + column
    return (key[:at] + key[at + 1 :]), key[at]


def _competing(name: str, cell: PivotCell) -> Estimate | None:
    needs_attack = figure_of(name) in _NEEDS_ATTACK
    return cell.estimates.get(name) if cell.attacked or not needs_attack else None


def best_of(name: str, values: Iterable[Estimate | None]) -> list[int]:
    """Where the best means stand, alike to the digits shown; none where fewer than two compete, or
    where an interval is wider than the difference to the next."""
    measure, given = MEASURE[name], list(values)
    shown = {
        n: round(value.mean, measure.digits(value.n)) for n, value in enumerate(given) if value
    }
    if not measure.better or len(shown) < 2:
        return []
    best = max(shown.values(), key=lambda mean: measure.better * mean)
    winners = [n for n, mean in shown.items() if mean == best]
    next_best = max(
        (n for n in shown if n not in winners),
        key=lambda n: measure.better * shown[n],
        default=None,
    )
    return winners if _apart(given, winners, next_best) else []


def _apart(given: Sequence[Estimate | None], winners: Sequence[int], next_best: int | None) -> bool:
    """Whether no interval among these is wider than the difference of their means."""
    others = [] if next_best is None else [next_best]
    found = [value for n in [*winners, *others] if (value := given[n]) is not None]
    widths = [2 * value.half for value in found if value.half is not None]
    difference = 0.0 if next_best is None else abs(found[0].mean - found[-1].mean)
    return max(widths, default=0.0) <= difference
