"""Notes on networks that classify clean images so poorly that their other values mean little, and
on triggers that work without poison."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from backdoor_lab.analysis.intervals import newcombe, wilson
from backdoor_lab.results.records import CellRecord
from backdoor_lab.results.sweeps import CONTROLS
from backdoor_lab.tables.naming import named

NEAR = 0.1
"""Nat is near chance if the lower end of its interval is less than this fraction of the way from
chance to 100 %."""
OVERFITTED = 0.3
"""A network is reported if its training accuracy is this much above its Nat."""
DAMAGED = 0.1
"""A network is reported if Nat2 is this much below Nat1."""
SCATTERED = 0.2
"""Networks are reported if their Nat differs by more than this between seeds."""
_BEFORE = (
    "Neither the attack nor the defense can be judged by such a network: use more training images,"
    " more epochs, augmentation or a smaller network."
)
_AFTER = "A low ASR2 of such a network does not mean that the defense removed the backdoor."
FAR = 0.1
"""ASR2 is far above the clean rate if it is significantly higher by more than this."""
MUCH, ENOUGH = 0.4, 20
"""A budget is reported if removing at random removed at least the share `MUCH` of at least `ENOUGH`
poisoned images."""
Reason = tuple[str, list[CellRecord]]


def poor_networks(cells: Sequence[CellRecord], after: bool) -> list[str]:
    """Returns notes on networks that classify clean images poorly: one on networks before the
    defense and, if `after`, one on networks after it. `cells` are completed cells."""
    lines = []
    for number, when in (("1", "before"), *[("2", "after")] * after):
        reasons = [*_reasons(cells, number)]
        found = {id(cell) for _, some in reasons for cell in some}
        if found:
            where = named(cells, [cell for cell in cells if id(cell) in found], after=number)
            said = "; ".join(text for text, _ in reasons)
            worth = _BEFORE if number == "1" else _AFTER
            lines.append(f"The network {when} the defense is poor ({where}): {said}. {worth}")
    return lines


def natural_triggers(cells: Sequence[CellRecord]) -> list[str]:
    """Returns a note on triggers that networks trained without poison take for the target: no
    poisoned image was left for retraining, but ASR2 is far above the clean rate. `cells` are
    completed cells."""
    found = [cell for cell in cells if _is_natural(cell)]
    if not found:
        return []
    most = max(cell.numbers["asr2"] for cell in found)
    return [
        f"No poisoned image was left in {named(cells, found, after='2')}, but ASR2 is up to"
        f" {most:.1%}: the trigger alone makes a network predict the target, without a backdoor, so"
        " ASR2 cannot show what the defense removed. defense=clean_data gives the ASR of a network"
        " that saw no poison; another target or a weaker trigger lowers it."
    ]


def partly_removed(cells: Sequence[CellRecord]) -> list[str]:
    """Returns a note on defenses after which ASR2 is less than half of ASR1 but still far above the
    clean rate. `cells` are completed cells."""
    found = [cell for cell in cells if _is_partly_removed(cell)]
    if not found:
        return []
    most = max(found, key=lambda cell: cell.numbers["asr2"])
    return [
        f"ASR2 is lower than ASR1 in {named(cells, found, after='2')}, but still up to"
        f" {most.numbers['asr2']:.1%}, where the clean rate is"
        f" {most.numbers['clean_rate2']:.1%}: the backdoor is removed only in part."
    ]


def large_budget(cells: Sequence[CellRecord]) -> list[str]:
    """Returns a note on cells in which removing images at random removed much of the poison: the
    budget is a large share of the class. `cells` are completed cells."""
    found = [cell for cell in cells if _removed_at_random(cell) >= MUCH]
    if not found:
        return []
    most = max(map(_removed_at_random, found))
    return [
        f"In {named(cells, found)}, removing at random already removed up to {most:.0%} of the"
        " poisoned images, since the budget is about this share of the class. A lower ratio or"
        " protocol.removal_budget, or more images, tells filters apart better."
    ]


def _removed_at_random(cell: CellRecord) -> float:
    """The share of the poisoned images that the control `random` removed; 0 for other cells and if
    fewer than `ENOUGH` images are poisoned."""
    poisoned, left = cell.numbers.get("n_poisoned", 0), cell.numbers.get("pois_left")
    if cell.choices.get("defense") != "random" or left is None or poisoned < ENOUGH:
        return 0.0
    return 1 - left / poisoned


def _is_natural(cell: CellRecord) -> bool:
    """Whether ASR2 is far above the clean rate although no poison was left."""
    known = cell.numbers
    return bool(known.get("n_poisoned")) and known.get("pois_left") == 0 and _is_far_above(cell)


def _is_partly_removed(cell: CellRecord) -> bool:
    known = cell.numbers
    if known.get("pois_left") == 0 or cell.choices.get("defense") in CONTROLS:
        return False
    less = known.get("asr2", 1.0) < known.get("asr1", 0.0) / 2
    return less and _is_far_above(cell)


def _is_far_above(cell: CellRecord) -> bool:
    """Whether ASR2 is far above the clean rate. The interval treats both rates as independent, as
    in `learned.without_attack`. False if a value is unknown."""
    asr, rate, images = (cell.numbers.get(name) for name in ("asr2", "clean_rate2", "n_asr"))
    if asr is None or rate is None or not images:
        return False
    return newcombe(asr, int(images), rate, int(images))[0] > FAR


def _reasons(cells: Sequence[CellRecord], number: str) -> Iterator[Reason]:
    """Yields each reason why networks are poor, with the cells to which it applies."""
    nat = f"nat{number}"
    known = [cell for cell in cells if nat in cell.numbers]
    if low := [cell for cell in known if _is_near_chance(cell, nat)]:
        worst = min(low, key=lambda cell: cell.numbers[nat])
        said = f"near chance (always predicting the same class gives {chance(worst):.1%})"
        yield f"Nat{number} is as low as {worst.numbers[nat]:.1%}, {said}", low
    if over := [cell for cell in known if _gap(cell, number) > OVERFITTED]:
        worst = max(over, key=lambda cell: _gap(cell, number))
        fitted = f"{worst.numbers[f'train_accuracy{number}']:.1%} of the training images"
        said = f"where {fitted} are classified correctly, so the network memorized them"
        yield f"Nat{number} is as low as {worst.numbers[nat]:.1%} {said}", over
    if number == "2" and (less := [cell for cell in known if _loss(cell) > DAMAGED]):
        most = max(map(_loss, less))
        yield f"Nat2 is up to {100 * most:.1f} percentage points below Nat1", less
    if apart := [group for group in _by_seed(known) if _range(group, nat) > SCATTERED]:
        most = max(_range(group, nat) for group in apart)
        said = f"differs by up to {100 * most:.1f} percentage points between seeds"
        yield f"Nat{number} {said}", [cell for group in apart for cell in group]


def chance(cell: CellRecord) -> float | None:
    """Returns the accuracy of always predicting one class: the target or, if the ASR is measured on
    images of the source class only, the source. None if it cannot be computed from the record."""
    images, attacked = cell.numbers.get("n_test"), cell.numbers.get("n_asr")
    asr_on = (cell.protocol or {}).get("asr_on")
    if not images or not attacked or not attacked <= images:
        return None
    return {"not_target": 1 - attacked / images, "source": attacked / images}.get(str(asr_on))


def _is_near_chance(cell: CellRecord, nat: str) -> bool:
    """Whether Nat is near chance. False if chance is unknown."""
    least = chance(cell)
    if least is None:
        return False
    low, _ = wilson(cell.numbers[nat], int(cell.numbers["n_test"]))
    return low < least + NEAR * (1 - least)


def _gap(cell: CellRecord, number: str) -> float:
    return cell.numbers.get(f"train_accuracy{number}", 0.0) - cell.numbers[f"nat{number}"]


def _loss(cell: CellRecord) -> float:
    return cell.numbers.get("nat1", 0.0) - cell.numbers["nat2"]


def _by_seed(cells: Iterable[CellRecord]) -> list[list[CellRecord]]:
    """Groups the cells that differ only in the seed."""
    found: dict[object, list[CellRecord]] = defaultdict(list)
    for cell in cells:
        choices = tuple(item for item in cell.choices.items() if item[0] != "seed")
        found[choices, cell.config].append(cell)
    return [*found.values()]


def _range(cells: Sequence[CellRecord], nat: str) -> float:
    values = [cell.numbers[nat] for cell in cells]
    return max(values) - min(values)
