"""Selects the tables that are shown for a sweep if no layout is requested."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from backdoor_lab.results.facts import PROTOCOL, SEED, CellFields
from backdoor_lab.results.records import CHOICES, CellRecord
from backdoor_lab.tables.layout import MEASURES, UNKNOWN, PivotSpec, splitting
from backdoor_lab.tables.pivot import PivotTable, pivot
from backdoor_lab.tables.text import ACROSS, document, evenly
from backdoor_lab.tables.writers import markdown as in_markdown
from backdoor_lab.tables.writers import terminal

MOST = 4
"""Maximum number of tables in the layout of the published report, and of defenses in one table;
above it, wide tables are shown."""
ACROSS_WITH_INTERVALS = 6
DEFENSE, SOURCE = "defense", "source"
ATTACK = ("n_poisoned", "nat1", "asr1")
AFTER = ("pois_left", "nat2", "asr2")
SCOPE = ("n_accused", "n_named")
FILTER = ("auroc", "average_precision", "tpr_at_1", "tpr_at_5")
SAME = "Figures before the defense do not depend on it. Those shown are from cells with defense {}."
_AFTER_ONLY = ("filter_scope", "removal_budget", "max_removed", "center", "layer")
"""Names of protocol options that have no effect on measures taken before the defense."""


def shown(facts: CellFields, tables: Sequence[PivotTable]) -> list[PivotTable]:
    """Returns the tables to show: either `tables`, in the layout of the published report, or wide
    tables.

    Wide tables are shown if the number of `tables` (one per trigger, model, ...) exceeds `MOST`, if
    one of them has more than `MOST` defenses, or if no completed cell was retrained, so that Nat2
    and ASR2 would be empty.

    The axes of wide tables are all choices that differ, except the seed. If there are several axes,
    the one with the fewest values (other than the defense) forms the columns; the others form the
    rows, defense first, so that defenses compete within a column. All measures of completed cells
    are in one table if a line then has at most `ACROSS` values (with several seeds:
    `ACROSS_WITH_INTERVALS`); otherwise each group of measures gets a separate table. If the defense
    is an axis, measures taken before the defense get a separate table with one line per attack.
    """
    if not (_crowded(tables) or _without_retraining(facts.cells)):
        return list(tables)
    return list(_wide(facts))


def kept(shown: Sequence[PivotTable], tables: Sequence[PivotTable]) -> list[PivotTable]:
    """Returns the tables to write to files, of the `tables` in the published report's layout: those
    that are also in `shown`, and those with a retrained cell that the report contains."""
    return [
        table for table in tables
        if any(table is each for each in shown)
        or any("nat2" in table.cells[row, ()].estimates for row in table.compared)
    ]  # fmt: skip


def markdown(table: PivotTable) -> str:
    """Returns a table as aligned Markdown for a file."""
    return in_markdown(document(table))


def printed(table: PivotTable) -> str:
    """Returns a table as aligned text for a terminal."""
    return terminal(document(table))


def _crowded(tables: Sequence[PivotTable]) -> bool:
    readable = [table for table in tables if table.traits != UNKNOWN]
    defenses = [len({row[-1] for row in table.rows}) for table in readable]
    return len(readable) > MOST or max(defenses, default=0) > MOST


def _without_retraining(cells: Sequence[CellRecord]) -> bool:
    done = [cell.numbers for cell in cells if cell.done and cell.choices]
    return bool(done) and not any("nat2" in each or "asr2" in each for each in done)


def _wide(facts: CellFields) -> Iterator[PivotTable]:
    cells, axes = facts.cells, _axes(facts)
    attack = tuple(name for name in axes if name != DEFENSE)
    if len(attack) < len(axes):
        yield from _before(cells, attack)
    columns = (min(attack, key=lambda name: len(facts.values(name))),) if len(axes) > 1 else ()
    rows = (*[DEFENSE] * (DEFENSE in axes), *(name for name in attack if name not in columns))
    across = ACROSS if len(facts.values(SEED)) == 1 else ACROSS_WITH_INTERVALS
    fit = max(1, across // max([len(facts.values(name)) for name in columns], default=1))
    for values in _parts(cells, (SCOPE, AFTER if DEFENSE in axes else MEASURES, FILTER), fit):
        yield from pivot(facts, PivotSpec(rows or ("trigger",), columns, values))


def _parts(
    cells: Sequence[CellRecord], groups: Sequence[Sequence[str]], fit: int
) -> Iterator[tuple[str, ...]]:
    """Yields the measures of each table.

    If there are at most `fit` measures, one table has all of them. Otherwise, each group of
    measures in `groups` has separate tables, with at most `fit` measures per table. Without
    completed cells there is still one table, which lists the cells that are not done.
    """
    known = [[name for name in group if _known(cells, name)] for group in groups]
    known = known if any(known) else [list(groups[0][:fit])]
    together = [name for group in known for name in group]
    for group in [together] if len(together) <= fit else known:
        yield from map(tuple, evenly(group, max(1, -(-len(group) // fit))))


def _axes(facts: CellFields) -> list[str]:
    """Returns the names of the fields that vary between cells: first the choices other than seed
    and source, then the other fields that these choices do not determine."""
    names = [name for name in CHOICES if name not in (SEED, SOURCE)]
    varied = [name for name in names if len(facts.values(name)) > 1]
    others = splitting(facts, PivotSpec(tuple(varied)))
    return [*varied, *(name for name in others if len(facts.values(name)) > 1)]


def _before(cells: Sequence[CellRecord], attack: tuple[str, ...]) -> Iterator[PivotTable]:
    """Yields tables of the measures taken before the defense, with one cell per attack and seed.
    Prefers completed cells and, among these, cells with the most frequent defense."""
    done = [cell for cell in cells if cell.done and cell.choices]
    often = Counter(cell.choices[DEFENSE] for cell in done)
    facts = CellFields([cell for cell in cells if cell.choices])
    names = [name for name in facts.names if name in attack or not _after_only(name)]
    chosen: dict[tuple[str, ...], CellRecord] = {}
    for number in sorted(range(len(facts.cells)), key=lambda n: _preferred(facts.cells[n], often)):
        chosen.setdefault(facts.key(number, names), facts.cells[number])
    taken = {id(cell) for cell in chosen.values()}
    mine = [cell for cell in facts.cells if id(cell) in taken]
    values = tuple(value for value in ATTACK if _known(mine, value))
    if not values:
        return
    alike = CellFields(mine, attack)
    alike.names = [name for name in alike.names if name in attack or not _after_only(name)]
    defenses = dict.fromkeys(str(cell.choices[DEFENSE]) for cell in mine)
    whose = " and ".join(defenses)
    for table in pivot(alike, PivotSpec(attack or ("trigger",), (), values)):
        yield replace(table, notes=[SAME.format(whose), *table.notes])


def _preferred(cell: CellRecord, often: Counter[str]) -> tuple[bool, int]:
    return not cell.done, -often[cell.choices[DEFENSE]]


def _after_only(name: str) -> bool:
    """Whether a protocol or config value has no effect on measures taken before the defense."""
    if name.startswith("config."):
        return name.startswith(("config.defense.", "config.code.defense"))
    return name == DEFENSE or name.removeprefix(PROTOCOL) in _AFTER_ONLY


def _known(cells: Sequence[CellRecord], name: str) -> bool:
    return any(cell.done and name in cell.numbers for cell in cells)
