"""What is said below a table: the protocol, what was run on what, and how to read the figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from backdoor_lab.core.errors import many
from backdoor_lab.results.records import Cell
from backdoor_lab.tables import reference
from backdoor_lab.tables.layout import UNREADABLE, Group
from backdoor_lab.tables.worth import cautions

READING = (
    "Nat: accuracy on clean test images, ASR: share of triggered test images classified as the "
    "target, both in %; 1 before the defense, 2 after it. #Pois: poisoned training images."
)
INTERVAL = (
    "Mean ± 95 % interval over seeds (Student t, n-1 degrees of freedom); the interval is of the "
    "mean and not clipped, so it may reach beyond 0 or 100. n= where a figure rests on fewer seeds."
)
BEST = (
    "Bold: the best mean of the defenses against one attack, to the digits shown; none where an "
    "interval is wider than the difference to the next, and no ASR2 where ASR1 shows no attack. "
    "oracle and clean_data, which are told the truth, take no part."
)
EVERY_CLASS = (
    "labels=all_to_all: every class is attacked, and the target of an image is the class after "
    "its own, whatever stands under Target."
)
_SHOWN = 3


def notes_of(group: Group) -> list[str]:
    """The lines below one table."""
    cells = group.cells
    if group.trigger == UNREADABLE and not any(cell.choices for cell in cells):
        return ["Records that cannot be read, of cells that no sweep.json lists; see the warnings."]
    interval = [INTERVAL] if any(len(row) > 1 for row in group.rows.values()) else []
    every = [EVERY_CLASS] * (group.traits.get("protocol.labels") == "all_to_all")
    return [
        _protocol(group), *every, _what(group, cells), *where(cells), READING, *interval,
        *cautions(cells),
    ]  # fmt: skip


def clean_images(cells: Iterable[Cell]) -> list[int]:
    """The sizes of the training sets before poison was added, where they are recorded."""
    sizes = {
        cell.numbers["n_train"] - cell.numbers["n_poisoned"]
        for cell in cells
        if {"n_train", "n_poisoned"} <= cell.numbers.keys()
    }
    return sorted(map(int, sizes))


def comparison(traits: dict[str, str], clean: Sequence[int]) -> str:
    """What may be concluded from a difference to the report, for cells of these traits whose
    training sets had `clean` images before poison was added."""
    ours = (traits.get("dataset", "any"), traits.get("model", "any"))
    text = (
        "Reference: the report's figures (Group 13, Tables 1 and 2) are CIFAR-10 with ResNet18; "
        "diff: ours minus theirs, in percentage points (#Pois Left: images). "
    )
    if ours == (reference.DATASET, reference.MODEL) and list(clean) == [reference.TRAINING_IMAGES]:
        return text + "Ours is the same data set and network, by name and number of images."
    images = ", ".join(f"{n:,}" for n in clean)
    on = f" on {images} training images" if images else ""
    return (
        f"{text}Ours is {ours[0]} with {ours[1]}{on}: this compares the shape and is no"
        " reproduction."
    )


def _protocol(group: Group) -> str:
    values = {
        name.removeprefix("protocol."): value
        for name, value in group.traits.items()
        if name.startswith("protocol.")
    }
    version = values.pop("version", "1")
    said = ", ".join(f"{name}={value}" for name, value in values.items())
    name = f"{group.traits.get('protocol', 'any')}@{version}"
    return f"Protocol {name}: {said or 'values not recorded'}."


def _what(group: Group, cells: Sequence[Cell]) -> str:
    parts = [
        f"{name} {value}"
        for name, value in group.traits.items()
        if name not in ("trigger", "protocol") and not name.startswith("protocol.")
    ]
    defenses = list(dict.fromkeys(str(c.choices["defense"]) for c in cells if c.choices))
    parts += [f"defense {defenses[0]}"] if len(defenses) == 1 else []
    seeds = sorted({cell.choices["seed"] for cell in cells if cell.choices})
    parts.append(f"{'seeds' if len(seeds) > 1 else 'seed'} {seed_range(seeds)}")
    done = sum(cell.done for cell in cells)
    return f"{'; '.join(parts)}; {done} of {many(len(cells), 'cell')} done."


def where(cells: Sequence[Cell]) -> list[str]:
    """Versions and devices of the runs, several of them listed, the most frequent first; and whose
    code was not as committed."""
    devices = _frequent(cell.run.get("device") for cell in cells)
    versions = _frequent(_versions(cell.run.get("versions")) for cell in cells)
    lines = [f"Device: {devices}."] if devices else []
    edited = sorted({name for cell in cells for name in cell.run.get("modified") or []})
    lines += [f"Versions: {versions}."] if versions else []
    return lines + ([f"Code modified since its version: {', '.join(edited)}."] if edited else [])


def _versions(given: Any) -> str:
    if not isinstance(given, dict):
        return ""
    return ", ".join(f"{name} {version}" for name, version in sorted(given.items()))


def _frequent(values: Iterable[Any]) -> str:
    counts = Counter(str(value) for value in values if value)
    ranked = sorted(counts, key=lambda value: (-counts[value], value))
    more = f" (and {len(ranked) - _SHOWN} more)" if len(ranked) > _SHOWN else ""
    return " | ".join(ranked[:_SHOWN]) + more


def seed_range(seeds: Sequence[int]) -> str:
    """``0-4``, or ``0, 2`` where it has gaps."""
    if len(seeds) > 2 and seeds[-1] - seeds[0] == len(seeds) - 1:
        return f"{seeds[0]}-{seeds[-1]}"
    return ", ".join(map(str, seeds))
