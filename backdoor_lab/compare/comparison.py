"""Compares two sweeps, a sweep and the published report, or the values of one choice, cell by
cell."""

from __future__ import annotations

from backdoor_lab.compare.compare_notes import notes_of
from backdoor_lab.compare.compare_text import Comparison
from backdoor_lab.compare.pairs import (
    PairedGroup,
    lines_of,
    one_sweep,
    pair_word,
    two_sweeps,
    with_report,
)
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.options import names
from backdoor_lab.results.facts import (
    CONFIG,
    SEED,
    CellFields,
    config_names,
    known_names,
)
from backdoor_lab.results.measure_names import measures_of
from backdoor_lab.results.sweeps import Sweep
from backdoor_lab.tables.reference import COLUMNS

DEFAULT = "nat2,asr2,pois_left"
WITHIN = f"{DEFAULT},auroc"
"""The measures that are compared within one sweep. The page of a sweep compares the same ones, so
that Holm's correction counts the same tests."""
RANDOM = "random"
FORMS = (
    "give two sweep folders (A B), one sweep folder and `reference` for the published report"
    " (A reference), or one sweep folder and the choice and base value to compare within the sweep"
    " (A by=NAME base=VALUE)"
)


def comparison_of(
    sweeps: list[Sweep], *, report: bool = False, by: str = "", base: str = "",
    values: str | None = None,
) -> Comparison:  # fmt: skip
    """Compare two sweeps with each other, one sweep with the published report, or the values of one
    choice within a sweep. In the last case, `by` is the name of the choice, and each of its other
    values is compared with the value `base`.

    Raises ConfigError for any other combination of arguments, for unknown names, and if there is no
    pair of cells to compare.
    """
    if len(sweeps) + report + bool(by) != 2 or not sweeps or bool(by) != bool(base):
        raise ConfigError(FORMS)
    cells = [cell for sweep in sweeps for cell in sweep.cells]
    default = WITHIN if by else DEFAULT
    asked = default if values is None else values
    measures = names("values", asked, COLUMNS) if report else measures_of(asked, cells)
    if by:
        return _within(sweeps[0], by, base, measures)
    facts = CellFields(cells)
    if report:
        side, paired_by = with_report(facts)
        ours = sweeps[0].name
        other = "report" if ours != "report" else "reference"
    else:
        side, paired_by = two_sweeps(facts, len(sweeps[0].cells))
        ours, other = _apart(*sweeps)
    return _told(facts, [side], f"{ours} minus {other}", (ours, other), "", paired_by, measures)


def _within(
    sweep: Sweep, by: str, base: str, measures: tuple[str, ...], facts: CellFields | None = None
) -> Comparison:
    (name,) = names("by", by, _without_seed(known_names(sweep.cells)), config_names(sweep.cells))
    facts = CellFields(sweep.cells, [name]) if facts is None else facts
    sides, paired_by = one_sweep(facts, name, base)
    title = f"{sweep.name}: every {name.removeprefix(CONFIG)} minus {base}"
    return _told(facts, sides, title, ("value", base), name, paired_by, measures)


def _without_seed(known: list[str]) -> list[str]:
    return [name for name in known if name != SEED]


def _apart(first: Sweep, second: Sweep) -> tuple[str, str]:
    """The names of two sweeps: their folder names or, if those are equal, their paths."""
    if first.name != second.name:
        return first.name, second.name
    return str(first.folder), str(second.folder)


def _told(
    facts: CellFields, sides: list[PairedGroup], title: str, heads: tuple[str, str], by: str,
    paired_by: list[str], measures: tuple[str, ...],
) -> Comparison:  # fmt: skip
    pairs = [pair for side in sides for pair in side.pairs]
    keys = {name: {pair_word(facts, pair, name) for pair in pairs} for name in paired_by}
    labels = tuple(name for name in paired_by if name != SEED and len(keys[name]) > 1)
    lines = lines_of(facts, sides, labels, measures)
    notes = notes_of(facts, sides, lines, [*labels, by], measures)
    return Comparison(title, *heads, by, labels, lines, notes)


def against_random(sweep: Sweep, facts: CellFields | None = None) -> Comparison | None:
    """Compare every defense of a sweep with the control `random`, for the same attack and seed.

    `facts` are the fields of the sweep's cells, if they were already computed. Returns None if
    there is no pair of cells or no measure to compare.
    """
    defenses = {cell.choices["defense"] for cell in sweep.cells if cell.choices}
    if RANDOM not in defenses or len(defenses) < 2:
        return None
    try:
        found = _within(sweep, "defense", RANDOM, tuple(WITHIN.split(",")), facts)
    except ConfigError:
        return None
    return found if found.lines else None
