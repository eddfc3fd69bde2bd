"""The names of cells in notes below tables."""

from __future__ import annotations

from collections.abc import Sequence

from backdoor_lab.results.records import CellRecord
from backdoor_lab.results.values import ratio_words, words
from backdoor_lab.results.versions import versioned

_LISTED = 3


def named(cells: Sequence[CellRecord], some: Sequence[CellRecord], *, after: str = "1") -> str:
    """Returns ``every cell`` if `cells` has more than one cell and `some` contains all of them.
    Otherwise, returns the attacks and seeds of the cells `some`, and also their defenses if `after`
    is "2".

    `after`: "1" for values measured before the defense (such as Nat1), "2" for values measured
    after the defense (such as Nat2 and ASR2).
    """
    if len(some) == len(cells) > 1:
        return "every cell"
    names = list(dict.fromkeys(_attack(cell, defended=after == "2") for cell in some))
    more = [f"{len(names) - _LISTED} more"] if len(names) > _LISTED else []
    return "; ".join([*names[:_LISTED], *more])


def _attack(cell: CellRecord, *, defended: bool) -> str:
    chosen = cell.choices
    ratio = ratio_words(chosen["ratio"], (cell.protocol or {}).get("ratio_of"))
    names = [versioned(cell, "trigger"), words(chosen["target"]), ratio]
    names += [versioned(cell, "defense")] * defended
    return f"{' '.join(names)} seed {chosen['seed']}"
