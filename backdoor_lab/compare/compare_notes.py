"""Writes the notes below the table of a comparison."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from backdoor_lab.compare.compare_text import LEVEL, significant
from backdoor_lab.compare.pairs import ComparisonRow, MatchedCells, PairedGroup, versions_meet
from backdoor_lab.core.errors import many
from backdoor_lab.results.facts import CONFIG, PROTOCOL, SEED, CellFields, repeats
from backdoor_lab.results.metrics import MEASURE
from backdoor_lab.results.records import CHOICES
from backdoor_lab.results.values import flat, words
from backdoor_lab.results.versions import SECTIONS
from backdoor_lab.tables.learned import CleanNetworks
from backdoor_lab.tables.notes import (
    CONVERGED,
    clean_images,
    comparison,
    protocols,
    reading,
    seed_range,
    versions_shown,
    where,
)
from backdoor_lab.tables.poor import poor_networks
from backdoor_lab.tables.worth import without_effect

DIFFERENCE = (
    "Difference: the first minus the second, mean over pairs ± 95 % interval (Student t over the "
    "pairs, n-1 degrees of freedom, not clipped); percentage points for figures in %."
)
TESTS = (
    "All p values are two-sided. p (t): paired t test. p (Holm): the same, corrected by Holm's"
    " method for the {} t tests of this table; significant below 0.05. p (sign), p (Wilcoxon):"
    " exact sign test and exact Wilcoxon signed-rank test, without pairs that differ by zero."
)
FLOOR = (
    "With {} pairs per line, the p values of the two exact tests are at least {:.3g}, so only the t"
    " test can be significant there."
)
CONSTANT = "constant: every pair differs by the same amount, so the t test is undefined."
ONE = "A line of one pair has no interval and no test; run more seeds to get both."
NOT_SIGNIFICANT = (
    '"no" in the column Significant does not mean that both sides are equal. With {} in a line,'
    " only a difference that is large compared with its variation over seeds is significant: read"
    " the interval, or run more seeds."
)
ALL_LINES = (
    "all: mean over the lines of one measure, in which each line counts once; its interval shows"
    " how much the difference varies between lines. Its p values assume independent lines, so they"
    " are too small where lines share networks, images or seeds."
)
SEVERAL_VERSIONS = (
    "The sweep contains several versions of a trigger or defense, so no line is a mean over all"
    " triggers or defenses."
)
LONELY = "Not compared, because there is no completed cell to compare them with: {}."
REPORT = "The published report gives one run per cell."
OUR_SEEDS = " The intervals therefore cover only the variation of our seeds."
_LISTED = 12


def notes_of(
    facts: CellFields, sides: Sequence[PairedGroup], lines: Sequence[ComparisonRow],
    shown: Sequence[str], values: Sequence[str],
) -> list[str]:  # fmt: skip
    """All notes below a comparison. `shown` are the names of the fields that identify a line."""
    pairs = [pair for side in sides for pair in side.pairs]
    used = list(dict.fromkeys(n for pair in pairs for n in (pair.ours, pair.base) if n is not None))
    cells = [facts.cells[number] for number in used]
    ours = {name: " | ".join(facts.values(name, used)) for name in ("dataset", "model")}
    meeting = [SEVERAL_VERSIONS] * any(versions_meet(facts, side.pairs) for side in sides)
    report = []
    if any(pair.base is None for pair in pairs):
        seeds = OUR_SEEDS * any(line.result.n > 1 and not line.lines for line in lines)
        report = [REPORT + seeds, comparison(ours, clean_images(cells)), CONVERGED]
    clean = CleanNetworks.among(facts.cells)
    effect = without_effect(cells, clean) if {"asr1", "asr2"} & set(values) else []
    poor = poor_networks(cells, after=bool({"nat2", "asr2"} & set(values)))
    notes = [
        DIFFERENCE, *report, *poor, *effect, *_tests(lines), *_without(lines, values), *meeting,
        *_shared(facts, used, shown), *_differing(facts, pairs, shown), *_left(facts, sides),
        *protocols(facts, used, shown), *where(cells), reading(values),
    ]  # fmt: skip
    named = [value for name in SECTIONS for value in facts.values(name, used)]
    return [*notes, *versions_shown([*named, *notes])]


def _tests(lines: Sequence[ComparisonRow]) -> list[str]:
    """Notes that explain the p values, if any line has one."""
    results = [line.result for line in lines]
    tested = [result for result in results if result.t is not None]
    said = [TESTS.format(len(tested))] if tested else []
    exact = [line.result.n for line in lines if not line.lines and line.result.sign is not None]
    if exact and 2 / 2 ** max(exact) >= LEVEL:
        said.append(FLOOR.format(max(exact), 2 / 2 ** max(exact)))
    unclear = [each.result.n for each in lines if not each.lines and significant(each) == "no"]
    said += [NOT_SIGNIFICANT.format(many(min(unclear), "pair"))] if unclear else []
    said += [CONSTANT] * any(result.constant for result in results)
    said += [ONE] * any(result.n == 1 for result in results)
    return said + [ALL_LINES] * any(line.lines for line in lines)


def _without(lines: Sequence[ComparisonRow], values: Sequence[str]) -> list[str]:
    """A note that lists the requested measures for which no pair has values in both cells."""
    compared = {line.measure for line in lines}
    left = [MEASURE[name].head for name in values if name not in compared]
    return [f"No pair has values of {', '.join(left)} in both of its cells."] if left else []


def _shared(facts: CellFields, used: Sequence[int], shown: Sequence[str]) -> list[str]:
    """A note that lists the choices with the same value in all compared cells, and the seeds."""
    values = {name: facts.values(name, used) for name in CHOICES if name not in (*shown, SEED)}
    parts = [f"{name} {found[0]}" for name, found in values.items() if len(found) == 1]
    seeds = sorted({facts.cells[number].choices[SEED] for number in used})
    parts.append(f"{'seeds' if len(seeds) > 1 else 'seed'} {seed_range(seeds)}")
    return [f"{'; '.join(parts)}."]


def _differing(facts: CellFields, pairs: Sequence[MatchedCells], shown: Sequence[str]) -> list[str]:
    """A note on the differences within pairs: choices, protocol and configuration.

    Omits the fields in `shown`, the options of those fields that are choices, and config values
    that repeat protocol values. The last entry of `shown` is the choice that is compared, or empty;
    the code version of this choice is omitted too.
    """
    names = ("protocol", *shown, *(f"code.{section}" for section in SECTIONS.values()))
    skipped = tuple(f"{CONFIG}{name}." for name in names)
    chosen = {f"{CONFIG}{name}" for name in CHOICES}
    # The compared choice may itself repeat a protocol value.
    chosen |= {PROTOCOL + name.rpartition(".")[2] for name in shown[-1:] if name.startswith(CONFIG)}
    skipped += (f"{CONFIG}code.{shown[-1]}",) if shown[-1] else ()
    found: dict[str, dict[str, None]] = {}
    flats: dict[str, dict[str, Any]] = {}
    for pair in pairs:
        if pair.base is None:
            continue
        one, other = (_values_of(facts, number, flats) for number in (pair.ours, pair.base))
        for name in {**one, **other}:
            first, second = words(one.get(name)), words(other.get(name))
            known = name in shown or name in chosen or name.startswith(skipped)
            if first != second and not known and not _repeated(name, one, other):
                found.setdefault(name, {})[f"{first} → {second}"] = None
    parts = [f"{name}: {', '.join(list(ways)[:3])}" for name, ways in found.items()]
    more = f"; and {len(parts) - _LISTED} more" if len(parts) > _LISTED else ""
    return (
        [f"The two cells of a pair also differ in: {'; '.join(parts[:_LISTED])}{more}."]
        if parts
        else []
    )


def _repeated(name: str, *pair: Mapping[str, Any]) -> bool:
    """Whether the config value `name` of these two cells repeats their protocol value."""
    key = PROTOCOL + name.rpartition(".")[2]
    own, protocol = ([words(each[n]) if n in each else None for each in pair] for n in (name, key))
    return name.startswith(CONFIG) and repeats(name.removeprefix(CONFIG), own, protocol)


def _values_of(facts: CellFields, number: int, flats: dict[str, dict[str, Any]]) -> dict[str, Any]:
    text = facts.cells[number].config
    if text is not None and text not in flats:
        flats[text] = {CONFIG + name: value for name, value in flat(json.loads(text))}
    own = {name: v for name, v in facts.of[number].items() if name != SEED}
    own |= {name: facts.word(number, name) for name in SECTIONS}
    return own | flats.get(text or "", {})


def _left(facts: CellFields, sides: Sequence[PairedGroup]) -> list[str]:
    """Notes that list the unpaired cells with their status."""
    used = {n for side in sides for pair in side.pairs for n in (pair.ours, pair.base)}
    lonely = dict.fromkeys(n for side in sides for n in side.lonely if n not in used)
    names = [f"{facts.cells[n].id} ({facts.cells[n].status})" for n in lonely]
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return [LONELY.format(", ".join(names[:_LISTED]) + more)] if names else []
