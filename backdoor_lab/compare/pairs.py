"""Finds the pairs of cells to compare: in two sweeps, within a sweep, or with the published report.

Cells are paired by the columns of the tidy frame, which `CellFields` computes without pandas.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from backdoor_lab.analysis.paired import PairedStats, holm, paired
from backdoor_lab.core.errors import ConfigError, many, unknown
from backdoor_lab.results.facts import CONFIG, PROTOCOL, SEED, CellFields
from backdoor_lab.results.metrics import MEASURE
from backdoor_lab.results.records import CHOICES, CellRecord
from backdoor_lab.results.values import words
from backdoor_lab.results.versions import SECTIONS, unversioned
from backdoor_lab.tables import reference

Key = tuple[str, ...]
Lookup = Callable[[CellRecord, str], float | None]


@dataclass(frozen=True)
class MatchedCells:
    """The indices of two paired cells. `base` is None if cell `ours` is compared with the published
    report."""

    ours: int
    base: int | None


@dataclass(frozen=True)
class PairedGroup:
    """The pairs of one comparison, and the cells that are in no pair."""

    name: str
    pairs: list[MatchedCells]
    lonely: list[int]


@dataclass(frozen=True)
class ComparisonRow:
    """One line of a comparison, identified by `side` and `labels`.

    `ours` and `base` are means over the pairs. `lines` is the number of lines that a summary line
    summarizes, and 0 for other lines. `holm` is the p value of the t test after Holm's correction,
    or None if there is no test.
    """

    side: str
    labels: Key
    measure: str
    ours: float
    base: float
    result: PairedStats
    lines: int = 0
    holm: float | None = None


def two_sweeps(facts: CellFields, first: int) -> tuple[PairedGroup, list[str]]:
    """Pair the cells of two sweeps. Returns the pairs, and the names of the fields that are equal
    within a pair.

    `facts` contains the cells of the first sweep, then those of the second, which begin at index
    `first`. If each sweep has a single value of a field and the two values differ, the field is
    ignored in pairing. The seed is never ignored.
    """
    ours, base = range(first), range(first, len(facts.cells))
    extra = dict.fromkeys([*_extra(facts, ours), *_extra(facts, base)])
    names = [name for name in (*CHOICES, *extra) if not _compared(facts, name, ours, base)]
    side = _match(facts, "", ours, base, names)
    # Pair the remaining cells even if they differ in the version of a method.
    ours_left, base_left = ([n for n in side.lonely if n in among] for among in (ours, base))
    more = _match(facts, "", ours_left, base_left, names, versions=False)
    side = PairedGroup("", side.pairs + more.pairs, more.lonely)
    if not side.pairs:
        apart = [name for name in names if not _common(facts, name, ours, base)]
        said = f": the sweeps have no value of {', '.join(apart)} in common" if apart else ""
        raise ConfigError(
            f"no completed cell of the first sweep can be paired with one of the second{said}"
            f"{_unfinished(facts)}"
        )
    return side, names


def one_sweep(facts: CellFields, by: str, base: str) -> tuple[list[PairedGroup], list[str]]:
    """Pair the cells of a sweep that differ only in the choice `by`. The second cell of each pair
    has the value `base`. Returns the pairs, grouped by the value of the first cell, and the names
    of the fields that are equal within a pair."""
    values: dict[str, list[int]] = {name: [] for name in facts.values(by)}
    for number, each in enumerate(facts.of):
        if each:
            values[facts.word(number, by)].append(number)
    base = _base(by, base, values, facts)
    follows = ["source", *(name for name in facts.names if name.startswith((PROTOCOL, CONFIG)))]
    decided = facts.determined(follows, [by])
    # Two defenses always differ in their code, so cells are paired despite that.
    apart = {by, f"{CONFIG}code.{by}", *decided}
    names = [n for n in (*CHOICES, *_extra(facts, range(len(facts.of)))) if n not in apart]
    sides = [
        _match(facts, name, numbers, values[base], names)
        for name, numbers in values.items()
        if name != base
    ]
    if not any(side.pairs for side in sides):
        raise ConfigError(
            f"nothing to compare: no completed cell differs only in {by} from a completed cell"
            f" with {by}={base}{_unfinished(facts)}"
        )
    return sides, names


def _unfinished(facts: CellFields) -> str:
    """Returns what an error adds if cells are not done, otherwise an empty string."""
    left, of = sum(not cell.done for cell in facts.cells), many(len(facts.cells), "cell")
    return f"; {left} of {of} not done: run the sweep to its end first" * bool(left)


def _base(by: str, base: str, values: Mapping[str, Sequence[int]], facts: CellFields) -> str:
    """Returns the value of `by` that `base` means; `base` may omit the version, or be a ratio as it
    is configured. `values`: the values and their cells. Raises ConfigError for no or several."""
    said = {name: unversioned(name) if by in SECTIONS else words(facts.of[of[0]].get(by))
            for name, of in values.items()}  # fmt: skip
    same = [base] if base in values else [name for name, each in said.items() if each == base]
    if len(same) == 1:
        return same[0]
    if same:
        raise ConfigError(f"`base={base}` matches several versions: use one of {', '.join(same)}")
    raise unknown(f"`base`: {by}", base, values)


def with_report(facts: CellFields) -> tuple[PairedGroup, list[str]]:
    """Pair each completed cell with its values in the published report; omit cells that the report
    lacks. Returns the pairs, and the names of the fields that identify a cell, such as the seed."""
    known = [
        number
        for number, each in enumerate(facts.of)
        if each and each["defense"] == reference.DEFENSE and _in_report(each)
    ]
    pairs = [MatchedCells(number, None) for number in known if facts.cells[number].done]
    if not pairs:
        raise ConfigError(
            "the tables of the published report have no values for the completed cells of this"
            f" sweep: the tables cover only defense={reference.DEFENSE} and certain triggers,"
            " targets and ratios"
        )
    missing = [number for number in known if not facts.cells[number].done]
    return PairedGroup("", pairs, missing), [*CHOICES, *_extra(facts, known)]


def report_figure(cell: CellRecord, measure: str) -> float | None:
    """The published report's value for a cell's measure; None if there is none."""
    chosen = cell.choices
    found = reference.lookup(chosen["trigger"], chosen["target"], chosen["ratio"])
    return None if found is None else found.get(measure)


def lines_of(
    facts: CellFields, sides: Sequence[PairedGroup], labels: Sequence[str], values: Sequence[str]
) -> list[ComparisonRow]:
    """All lines of a comparison: for each side, one line per measure and combination of `labels`,
    followed by summary lines. Holm's correction is applied to all t tests of the table together."""
    found = []
    for side in sides:
        groups: dict[Key, list[MatchedCells]] = {}
        for pair in side.pairs:
            key = tuple(pair_word(facts, pair, name) for name in labels)
            groups.setdefault(key, []).append(pair)
        lines = [
            line
            for key, pairs in groups.items()
            for name in values
            if (line := _line(facts, side.name, key, name, pairs)) is not None
        ]
        found += lines
        if not versions_meet(facts, side.pairs):
            found += _summaries(side.name, lines, values)
    tested = [n for n, line in enumerate(found) if line.result.t is not None]
    adjusted = holm([found[n].result.t or 0.0 for n in tested])
    for n, value in zip(tested, adjusted, strict=True):
        found[n] = replace(found[n], holm=value)
    return found


def pair_word(facts: CellFields, pair: MatchedCells, name: str) -> str:
    """Returns the value of the field `name` for a pair of cells, as text. If `name` is a method
    whose version differs between the two cells, both versions are shown: ``abl@2 − abl@1``."""
    ours = facts.word(pair.ours, name)
    if pair.base is None or name not in SECTIONS:
        return ours
    base = facts.word(pair.base, name)
    return f"{ours} − {base}" if unversioned(ours) == unversioned(base) and ours != base else ours


def versions_meet(facts: CellFields, pairs: Sequence[MatchedCells]) -> bool:
    """Whether these pairs contain several versions of a method, so that a mean over all pairs would
    be meaningless."""
    for name in SECTIONS:
        found: dict[object, set[str]] = defaultdict(set)
        for pair in pairs:
            found[facts.of[pair.ours].get(name)].add(pair_word(facts, pair, name))
        if any(len(words) > 1 for words in found.values()):
            return True
    return False


def figure_of(facts: CellFields, number: int | None, ours: int, measure: str) -> float | None:
    """Returns the value of `measure` for the cell with index `number`, in the unit that tables use.
    If `number` is None, returns the value that the published report states for the cell with index
    `ours`."""
    if number is None:
        return report_figure(facts.cells[ours], measure)
    value = facts.cells[number].numbers.get(measure)
    return None if value is None else MEASURE[measure].scale * value


def _line(
    facts: CellFields, side: str, key: Key, name: str, pairs: Sequence[MatchedCells]
) -> ComparisonRow | None:
    both = [
        (ours, base)
        for pair in pairs
        if (ours := figure_of(facts, pair.ours, pair.ours, name)) is not None
        and (base := figure_of(facts, pair.base, pair.ours, name)) is not None
    ]
    if not both:
        return None
    # Differences that are equal in decimal must stay equal in binary, so round them.
    result = paired([round(ours - base, 10) for ours, base in both])
    mean_ours, mean_base = (sum(column) / len(both) for column in zip(*both, strict=True))
    return ComparisonRow(side, key, name, mean_ours, mean_base, result)


def _summaries(
    side: str, lines: Sequence[ComparisonRow], values: Sequence[str]
) -> list[ComparisonRow]:
    """Returns summary lines: for each measure, the unweighted mean over `lines`."""
    found = []
    for name in values:
        mine = [line for line in lines if line.measure == name]
        if len(mine) > 1:
            result = paired([round(line.result.mean, 10) for line in mine])
            ours = sum(line.ours for line in mine) / len(mine)
            base = sum(line.base for line in mine) / len(mine)
            found.append(ComparisonRow(side, (), name, ours, base, result, len(mine)))
    return found


def _match(
    facts: CellFields, side: str, ours: Sequence[int], base: Sequence[int], names: Sequence[str],
    *, versions: bool = True,
) -> PairedGroup:  # fmt: skip
    """Pair each completed cell of `ours` with a completed cell of `base` that is equal in all
    fields in `names`. If `versions` is False, versions of triggers and defenses may differ."""

    def key_of(number: int) -> Key:
        said = zip(names, facts.key(number, names), strict=True)
        cut = () if versions else SECTIONS
        return tuple([unversioned(word) if name in cut else word for name, word in said])

    partners: dict[Key, int] = {}
    for number in base:
        if facts.cells[number].done:
            partners.setdefault(key_of(number), number)
    pairs, lonely = [], []
    for number in ours:
        partner = partners.get(key_of(number)) if facts.cells[number].done else None
        if partner is None:
            lonely.append(number)
        else:
            pairs.append(MatchedCells(number, partner))
    used = {pair.base for pair in pairs}
    return PairedGroup(side, pairs, lonely + [number for number in base if number not in used])


def _extra(facts: CellFields, among: Sequence[int]) -> list[str]:
    """Returns the names of the protocol and configuration fields that differ between cells with
    the same choices."""
    resolved = [name for name in facts.names if name.startswith((PROTOCOL, CONFIG))]
    decided = set(facts.determined(resolved, CHOICES, among))
    return [name for name in resolved if name not in decided]


def _compared(facts: CellFields, name: str, ours: Sequence[int], base: Sequence[int]) -> bool:
    first, second = facts.values(name, ours), facts.values(name, base)
    return name != SEED and len(first) == len(second) == 1 and first != second


def _common(facts: CellFields, name: str, ours: Sequence[int], base: Sequence[int]) -> bool:
    return bool(set(facts.values(name, ours)) & set(facts.values(name, base)))


def _in_report(chosen: dict[str, Any]) -> bool:
    """Whether the published report contains a cell with these choices and protocol values."""
    if not reference.asks_the_same(chosen["protocol"], chosen.get("source"), chosen):
        return False
    return reference.lookup(chosen["trigger"], chosen["target"], chosen["ratio"]) is not None
