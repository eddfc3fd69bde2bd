"""What says below a table that its figures mean little; and whether ASR1 shows an attack at all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from backdoor_lab.results.records import Cell
from backdoor_lab.results.sweeps import CONTROLS
from backdoor_lab.results.values import ratio_words, words

FEW = 30
"""A rate of fewer images changes by more than 3 percentage points with one of them."""
MOSTLY = 0.9
"""A network that puts more than this share of the clean test images into one class."""
BEHIND = 0.02
"""A network that learned less of its training set than another, by more than this, is marked."""
SIGN = "†"
OWN_SEED = (
    "Nat2 and ASR2 differ from Nat1 and ASR1 also where nothing was removed: the retraining draws "
    "its own seed (retrain_seed=same takes that of the first training)."
)
_LISTED = 3
Kind = tuple[object, ...]
"""Data set, model and recipe: what two networks must share for their accuracies to compare."""


def cautions(cells: Sequence[Cell], values: Sequence[str] = ("asr1", "nat2", "asr2")) -> list[str]:
    """The lines below a table of `cells` that shows the measures `values`."""
    done = [cell for cell in cells if cell.done and cell.choices]
    after = bool({"nat2", "asr2"} & set(values))
    return [
        *_own_rules(done),
        *_few(done), *_one_class(done, after), *_not_converged(done, after), *_no_attack(done),
        *[OWN_SEED] * (after and any(map(_retrained_on_all, done))),
    ]  # fmt: skip


def shows_attack(cells: Iterable[Cell]) -> bool:
    """Whether ASR1 lies above the clean rate, in the mean over `cells` of one attack; True where
    the records do not say. Without poison there is no attack."""
    done = [cell.numbers for cell in cells if cell.done]
    if done and all(numbers.get("n_poisoned") == 0 for numbers in done):
        return False
    known = [(n["asr1"], n["clean_rate1"]) for n in done if {"asr1", "clean_rate1"} <= n.keys()]
    return not known or math.fsum(asr - clean for asr, clean in known) > 0


def not_converged(cells: Iterable[Cell]) -> dict[str, list[str]]:
    """Cell id -> ``nat1``, ``nat2`` or both, where a network learned clearly less of its training
    set than the clean networks of the same recipe, model and data set among `cells`; without
    those, than the best network of the same ratio."""
    done = [cell for cell in cells if cell.done and cell.choices]
    found: dict[str, list[str]] = {}
    for number in "12":
        figure = f"train_accuracy{number}"
        known = [cell for cell in done if figure in cell.numbers]
        clean, best = _references(known, figure)
        for cell in known:
            kind = _kind(cell)
            wanted = clean.get(kind, best[kind, cell.choices["ratio"]])
            if wanted - cell.numbers[figure] > BEHIND:
                found.setdefault(cell.id, []).append(f"nat{number}")
    return found


def marks_of(cells: Iterable[Cell], marked: Mapping[str, Sequence[str]]) -> frozenset[str]:
    """What `not_converged` says of any of `cells`."""
    return frozenset(name for cell in cells for name in marked.get(cell.id, ()))


def _references(
    cells: Sequence[Cell], figure: str
) -> tuple[dict[Kind, float], dict[tuple[Kind, float], float]]:
    """The mean training accuracy of the clean networks of each kind, and the highest of each kind
    and ratio."""
    clean: dict[Kind, list[float]] = {}
    best: dict[tuple[Kind, float], float] = {}
    for cell in cells:
        kind, value = _kind(cell), cell.numbers[figure]
        alike = kind, cell.choices["ratio"]
        best[alike] = max(value, best.get(alike, value))
        if cell.numbers.get("n_poisoned") == 0:
            clean.setdefault(kind, []).append(value)
    return {kind: math.fsum(each) / len(each) for kind, each in clean.items()}, best


def _kind(cell: Cell) -> Kind:
    return tuple(cell.choices.get(name) for name in ("dataset", "model", "recipe"))


def _not_converged(cells: Sequence[Cell], after: bool) -> list[str]:
    marked = not_converged(cells)
    lines = []
    for number, when in (("1", "before"), *[("2", "after")] * after):
        some = [cell for cell in cells if f"nat{number}" in marked.get(cell.id, [])]
        if some:
            lowest = min(cell.numbers[f"train_accuracy{number}"] for cell in some)
            lines.append(
                f"{SIGN} The network {when} the defense did not converge"
                f" ({_where(cells, some, after=number)}): it gets as few as {lowest:.1%} of its"
                f" training images right, more than {BEHIND:.0%} fewer than a clean network of the"
                " same recipe, or where the table has none, than the best one of the same ratio."
                " Train it longer before its figures are used."
            )
    return lines


def _own_rules(cells: Sequence[Cell]) -> list[str]:
    """Filters that are no `Filter`: what the protocol says of classes and budget is not theirs."""
    free = dict.fromkeys(
        words(cell.choices["defense"])
        for cell in cells
        if cell.applied is not None
        and "budget" not in cell.applied
        and cell.choices["defense"] not in CONTROLS
        and cell.numbers.get("n_removed")
    )
    return [
        f"{name} chooses classes and number of images by rules of its own, not the protocol's"
        " classes, budget and budget_cap."
        for name in free
    ]


def _few(cells: Sequence[Cell]) -> list[str]:
    lines = []
    for rate, name in (("Nat", "n_test"), ("ASR", "n_asr")):
        few = [cell for cell in cells if 0 < cell.numbers.get(name, math.inf) < FEW]
        if few:
            counts = sorted({int(cell.numbers[name]) for cell in few})
            lines.append(
                f"Fewer than {FEW} images: {rate} rests on {' or '.join(map(str, counts))} test"
                f" images ({_where(cells, few)}); one image more or less changes it by percents."
            )
    return lines


def _one_class(cells: Sequence[Cell], after: bool) -> list[str]:
    lines = []
    for number, when in (("1", "before"), *[("2", "after")] * after):
        one = [cell for cell in cells if cell.numbers.get(f"top_share{number}", 0) > MOSTLY]
        if one:
            names = dict.fromkeys(cell.top_class.get(f"top_class{number}", "?") for cell in one)
            lines.append(
                f"The network {when} the defense predicts one class ({', '.join(names)}) for more"
                f" than {MOSTLY:.0%} of the clean test images ({_where(cells, one, after=number)}):"
                f" Nat{number} and ASR{number} tell little."
            )
    return lines


def _no_attack(cells: Sequence[Cell]) -> list[str]:
    none = [
        cell
        for cell in cells
        if cell.numbers.get("asr1", math.inf) <= cell.numbers.get("clean_rate1", -math.inf)
    ]
    if not none:
        return []
    highest = max(cell.numbers["clean_rate1"] for cell in none)
    return [
        "ASR1 is no higher than the clean rate, which is the share of the same test images"
        f" classified as the target without the trigger (up to {100 * highest:.2f} %), in"
        f" {_where(cells, none)}: it shows no attack, and ASR2 tells nothing about a defense."
    ]


def _retrained_on_all(cell: Cell) -> bool:
    stages = cell.run.get("stages")
    return (
        cell.numbers.get("n_removed") == 0
        and "nat2" in cell.numbers
        and isinstance(stages, dict)
        and "retrain" in stages
        and '"retrain_seed": "same"' not in (cell.config or "")
    )


def _where(cells: Sequence[Cell], some: Sequence[Cell], *, after: str = "1") -> str:
    """``every cell``, or the attacks (`after` "2": with their defenses) of some of `cells`."""
    if len(some) == len(cells) > 1:
        return "every cell"
    named = list(dict.fromkeys(_attack(cell, defended=after == "2") for cell in some))
    more = [f"{len(named) - _LISTED} more"] if len(named) > _LISTED else []
    return "; ".join([*named[:_LISTED], *more])


def _attack(cell: Cell, *, defended: bool) -> str:
    chosen = cell.choices
    ratio = ratio_words(chosen["ratio"], (cell.protocol or {}).get("ratio_of"))
    names = [words(chosen["trigger"]), words(chosen["target"]), ratio]
    names += [words(chosen["defense"])] * defended
    return f"{' '.join(names)} seed {chosen['seed']}"
