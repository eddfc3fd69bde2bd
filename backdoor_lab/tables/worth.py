"""Warnings below a table about values that have little meaning."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from backdoor_lab.results.records import CellRecord
from backdoor_lab.results.sweeps import CONTROLS
from backdoor_lab.results.versions import versioned
from backdoor_lab.tables.learned import (
    BEHIND,
    NO_ATTACK,
    NOT_CONVERGED,
    CleanNetworks,
    not_converged,
    without_attack,
)
from backdoor_lab.tables.naming import named
from backdoor_lab.tables.poor import (
    large_budget,
    natural_triggers,
    partly_removed,
    poor_networks,
)

FEW = 30
"""With fewer images than this, a single image changes a rate by more than 3 percentage points."""
MOSTLY = 0.9
"""A network is reported if it assigns more than this share of the clean test images to one
class."""
OWN_SEED = (
    "Nat2 and ASR2 differ from Nat1 and ASR1 even where nothing was removed, because retraining "
    "uses another seed (retrain_seed=same uses the seed of the first training)."
)
_CLEAN_NETWORK = "that of a network trained without poison, on the same test"
_CLEAN_RATE = (
    "the clean rate, which is the share of the same test images classified as the target without"
    " the trigger"
)
ONLY_WHOLE = f" Figures are marked {NO_ATTACK} only where none of their seeds shows an attack."
Signs = Mapping[str, Mapping[str, str]]
"""Maps a cell's id to the footnote marks of its figures in a table, by measure."""


def cautions(
    cells: Sequence[CellRecord], values: Sequence[str] = ("asr1", "nat2", "asr2"),
    clean: CleanNetworks | None = None, signs: Signs | None = None,
) -> list[str]:  # fmt: skip
    """Returns the warnings to print below a table that shows the measures in `values` for `cells`.
    `clean`: the clean networks to compare with, by default those among `cells`. `signs`: the
    footnote marks in the table. If the figures that a warning refers to have a footnote mark, the
    warning starts with this mark."""
    done = [cell for cell in cells if cell.done and cell.choices]
    after = bool({"nat2", "asr2"} & set(values))
    clean = CleanNetworks.among(done) if clean is None else clean
    signs = signs or {}
    return [
        *_own_rules(done), *_few(done), *_one_class(done, after), *poor_networks(done, after),
        *_not_converged(done, after, clean, signs), *without_effect(done, clean, signs),
        *([*natural_triggers(done), *partly_removed(done), *large_budget(done)] if after else ()),
        *[OWN_SEED] * (after and any(map(_retrained_on_all, done))),
    ]  # fmt: skip


def _not_converged(
    cells: Sequence[CellRecord], after: bool, clean: CleanNetworks, signs: Signs
) -> list[str]:
    marked = not_converged(cells, clean)
    lines = []
    for number, when in (("1", "before"), *[("2", "after")] * after):
        some = [cell for cell in cells if f"nat{number}" in marked.get(cell.id, [])]
        if some:
            sign = _sign(NOT_CONVERGED, f"nat{number}", some, signs)
            lowest = min(cell.numbers[f"train_accuracy{number}"] for cell in some)
            lines.append(
                f"{sign}The network {when} the defense did not converge"
                f" ({named(cells, some, after=number)}): its training accuracy is as low as"
                f" {lowest:.1%}, more than {100 * BEHIND:.0f} percentage points below that of"
                " clean networks of the same recipe or, if the sweep has none, of the best network"
                " of the same ratio. Train it longer before using its figures."
            )
    return lines


def _own_rules(cells: Sequence[CellRecord]) -> list[str]:
    """Returns a note on filters that do not follow the protocol's rules for classes and budget."""
    free = dict.fromkeys(
        versioned(cell, "defense")
        for cell in cells
        if cell.applied is not None
        and "removal_budget" not in cell.applied
        and cell.choices["defense"] not in CONTROLS
        and cell.numbers.get("n_removed")
    )
    return [
        f"{name} chooses the classes and the number of images to remove by its own rules and"
        " ignores the protocol's filter_scope, removal_budget and max_removed."
        for name in free
    ]


def _few(cells: Sequence[CellRecord]) -> list[str]:
    lines = []
    for rate, name in (("Nat", "n_test"), ("ASR", "n_asr")):
        few = [cell for cell in cells if 0 < cell.numbers.get(name, math.inf) < FEW]
        if few:
            counts = sorted({int(cell.numbers[name]) for cell in few})
            lines.append(
                f"Fewer than {FEW} images: {rate} is measured on {' or '.join(map(str, counts))}"
                f" test images ({named(cells, few)}); one image changes it by several percentage"
                " points."
            )
    return lines


def _one_class(cells: Sequence[CellRecord], after: bool) -> list[str]:
    lines = []
    for number, when in (("1", "before"), *[("2", "after")] * after):
        one = [cell for cell in cells if cell.numbers.get(f"top_share{number}", 0) > MOSTLY]
        if one:
            names = dict.fromkeys(cell.top_class.get(f"top_class{number}", "?") for cell in one)
            lines.append(
                f"The network {when} the defense predicts one class ({', '.join(names)}) for more"
                f" than {MOSTLY:.0%} of the clean test images ({named(cells, one, after=number)}):"
                f" Nat{number} and ASR{number} are not meaningful."
            )
    return lines


def _sign(sign: str, name: str, cells: Iterable[CellRecord], signs: Signs) -> str:
    """Returns the footnote mark `sign` and a space if the measure `name` has this mark in any of
    `cells`, otherwise an empty string."""
    return f"{sign} " * any(signs.get(cell.id, {}).get(name) == sign for cell in cells)


def without_effect(
    cells: Sequence[CellRecord], clean: CleanNetworks, signs: Signs | None = None
) -> list[str]:
    """Returns notes on the attacks among the completed `cells` that have no measurable effect. For
    the other arguments, see `cautions`."""
    signs = signs or {}
    none = without_attack(cells, clean)
    highest = {cell.id: 100 * (clean.expected(cell) or (0.0, 0))[0] for cell in none}
    lines = []
    for known, than in ((True, _CLEAN_NETWORK), (False, _CLEAN_RATE)):
        some = [cell for cell in none if clean.has_asr(cell) == known]
        if some:
            most = max(highest[cell.id] for cell in some)
            sign = max(_sign(NO_ATTACK, name, some, signs) for name in ("asr1", "asr2"))
            unmarked = any(NO_ATTACK not in signs[c.id].values() for c in some if c.id in signs)
            lines.append(
                f"{sign}ASR1 is not significantly higher than {than} (up to {most:.2f} %), judged"
                f" by the 95 % Newcombe interval of the difference, in {named(cells, some)}: there"
                " is no measurable attack, and ASR2 says nothing about a defense. A higher ratio or"
                " longer training may help."
                f"{ONLY_WHOLE * unmarked}"
            )
    return lines


def _retrained_on_all(cell: CellRecord) -> bool:
    stages = cell.run.get("stages")
    return (
        cell.numbers.get("n_removed") == 0
        and "nat2" in cell.numbers
        and isinstance(stages, dict)
        and "retrain" in stages
        and not cell.given
        and '"retrain_seed": "same"' not in (cell.config or "")
    )
