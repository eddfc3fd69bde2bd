"""The notes below a table: protocol, data and network of the runs, and how to read the values."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from backdoor_lab.core.errors import many
from backdoor_lab.results.facts import PROTOCOL, SEED, CellFields
from backdoor_lab.results.metrics import MEASURE
from backdoor_lab.results.records import CellRecord
from backdoor_lab.results.values import each_once, words
from backdoor_lab.results.versions import unrecorded
from backdoor_lab.tables import reference
from backdoor_lab.tables.layout import UNKNOWN, PivotSpec, TableGroup
from backdoor_lab.tables.learned import CleanNetworks
from backdoor_lab.tables.worth import Signs, cautions

READING = (
    "Nat: accuracy on clean test images. ASR: share of triggered test images classified as the "
    "target. Both are in %; 1 is before the defense, 2 after it. #Pois: poisoned training images; "
    "#Pois Left: those not removed by the defense."
)
INTERVAL = (
    "Mean ± 95 % interval over seeds (Student t, n-1 degrees of freedom); the interval is that of "
    "the mean and not clipped, so it may reach beyond 0 or 100."
)
FEWER = " n= marks figures from fewer seeds."
CONVERGED = (
    'Reference: the authors of the published report "had to change training parameters to'
    ' converge"; their tables do not say in which runs.'
)
EVERY_CLASS = (
    "label_mode=all_to_all: every class is attacked, and the target of an image is the class after "
    "its own, regardless of the column Target."
)
EMPTY = "Empty: the sweep has no such cell. Dash: the cell has no such figure."
MODIFIED = "Code modified after its version was recorded: {}."
UNRECORDED = "Code without a recorded version: {}."
GIVEN = (
    "Attacked networks that were not trained here, by the hash of their weights: {}. #Pois counts"
    " images of the training set that is filtered; such a network may be trained on another one."
)
AT = "NAME@N: version N of a method's or a protocol's code in this package."
AT_HASH = (
    "NAME@N+HASH: code modified since version N, or code without a recorded version if N is 0; HASH"
    " identifies it."
)
VERSION = f"{PROTOCOL}version"
_SHOWN, _LISTED, _FEW = 3, 12, 3


def notes_of(
    group: TableGroup, spec: PivotSpec, interval: Sequence[str], clean: CleanNetworks, signs: Signs
) -> list[str]:
    """Returns the notes below one table, except notes on single values. `interval`: the note on
    means over several seeds, if there are any (see `interval_note`); `clean`: the clean networks of
    the sweep; `signs`: the footnote marks in the table."""
    facts, cells = group.facts, group.cells
    if group.traits == UNKNOWN:
        return [
            "These cells are listed in no sweep.json, and their records cannot be read: see the"
            " warnings."
        ]
    more = [] if spec.report else [*_open(group, spec.axes), *_unplaced(facts)]
    return [
        *protocols(facts, group.numbers, spec.axes), _what(group, spec), *more, *where(cells),
        READING if spec.report else reading(spec.values), *interval,
        *[EMPTY] * (not spec.report), *cautions(cells, spec.values, clean, signs),
    ]  # fmt: skip


def interval_note(several: bool, fewer: bool) -> list[str]:
    """Returns the note on means over seeds. `several`: values may be means over several seeds;
    `fewer`: some values are marked with a smaller number of seeds."""
    return [INTERVAL + FEWER * fewer] * several


def _what(group: TableGroup, spec: PivotSpec) -> str:
    """Returns a note with the values, other than those of the protocol, that all cells share, with
    the seeds and with the number of completed cells."""
    cells = group.cells
    unsaid = ("protocol", "trigger") if spec.report else ("protocol",)
    parts = [
        f"{name} {value}"
        for name, value in group.traits.items()
        if name not in unsaid and not name.startswith(PROTOCOL)
    ]
    defenses = group.facts.values("defense", group.numbers) if spec.report else []
    parts += [f"defense {defenses[0]}"] if len(defenses) == 1 else []
    seeds = sorted({cell.choices[SEED] for cell in cells})
    parts.append(f"{'seeds' if len(seeds) > 1 else 'seed'} {seed_range(seeds)}")
    parts.append(f"{sum(cell.done for cell in cells)} of {many(len(cells), 'cell')} done")
    return f"{'; '.join(parts)}."


def protocols(facts: CellFields, members: Sequence[int], axes: Sequence[str] = ()) -> list[str]:
    """Returns one line per protocol with its values. If a value depends only on one of the `axes`,
    the line states for which values of that axis it applies."""
    found: dict[str, list[int]] = {}
    for number in members:
        version = facts.of[number].get(VERSION)
        name = f"{facts.word(number, 'protocol')}@{1 if version is None else words(version)}"
        found.setdefault(name, []).append(number)
    lines = []
    for name, numbers in found.items():
        names = set().union(*(facts.of[n] for n in numbers))
        keys = sorted(key for key in names if key.startswith(PROTOCOL) and key != VERSION)
        said = [f"{key.removeprefix(PROTOCOL)}={_value(facts, numbers, key, axes)}" for key in keys]
        done = any(facts.cells[number].done for number in numbers)
        unknown = "values not recorded" if done else "no cell is done yet"
        lines.append(f"Protocol {name}: {', '.join(said) or unknown}.")
    every = any(facts.of[number].get(f"{PROTOCOL}label_mode") == "all_to_all" for number in members)
    return lines + [EVERY_CLASS] * every


def _value(facts: CellFields, numbers: Sequence[int], key: str, axes: Sequence[str]) -> str:
    """Returns the values of the protocol key `key` as text: ``1.5eps`` or, if one of the `axes`
    (such as the defense) determines the value, ``1.5eps (spectral) | 15% (scan)``.

    If the most common value applies to more than three defenses, it comes last, as
    ``15% (all others)``.
    """
    values = facts.values(key, numbers)
    if len(values) == 1 or key in axes:
        return " | ".join(values)
    for axis in axes:
        by: dict[str, set[str]] = {}
        for n in numbers:
            by.setdefault(facts.word(n, axis), set()).add(facts.word(n, key))
        if all(len(each) == 1 for each in by.values()):
            whose = {value: [n for n, each in by.items() if value in each] for value in values}
            most = max(whose, key=lambda value: len(whose[value]))
            if len(whose[most]) > _FEW:
                del whose[most]
                whose[most] = ["all others"]
            return " | ".join(f"{value} ({', '.join(said)})" for value, said in whose.items())
    return " | ".join(values)


def _open(group: TableGroup, axes: Sequence[str]) -> list[str]:
    """Returns a note that lists the cells that are not done, with their status."""
    facts, names = group.facts, [name for name in axes if name != SEED]
    left = [
        f"{', '.join([*facts.key(n, names), f'seed {facts.word(n, SEED)}'])}:"
        f" {facts.cells[n].status}"
        for n in group.numbers
        if not facts.cells[n].done
    ]
    more = f"; and {len(left) - _LISTED} more" if len(left) > _LISTED else ""
    return [f"Not done: {'; '.join(left[:_LISTED])}{more}."] if left else []


def _unplaced(facts: CellFields) -> list[str]:
    """Returns a note on the records with unknown choices, which have no position in a table."""
    lost = [f"{cell.id} ({cell.status})" for cell in facts.cells if not cell.choices]
    more = f" and {len(lost) - _LISTED} more" if len(lost) > _LISTED else ""
    return [f"Not in any table: {', '.join(lost[:_LISTED])}{more}."] if lost else []


def reading(values: Sequence[str]) -> str:
    """Returns a note with the meaning of each measure."""
    return " ".join(f"{MEASURE[name].head}: {MEASURE[name].says}." for name in values)


def clean_images(cells: Iterable[CellRecord]) -> list[int]:
    """Returns the sizes of the training sets before poisoning, where recorded."""
    sizes = {
        cell.numbers["n_train"] - cell.numbers["n_poisoned"]
        for cell in cells
        if {"n_train", "n_poisoned"} <= cell.numbers.keys()
    }
    return sorted(map(int, sizes))


def comparison(traits: dict[str, str], clean: Sequence[int]) -> str:
    """Returns a note on how to read differences from the published report. `traits` has the data
    set and the model of the cells; `clean` has the sizes of the training sets before poisoning."""
    ours = (traits.get("dataset", "any"), traits.get("model", "any"))
    text = (
        "Reference: the figures of the published report (Group 13, Tables 1 and 2) are for"
        " CIFAR-10 with ResNet18; diff: our value minus the report's, in percentage points"
        " (#Pois Left: images). "
    )
    if ours == (reference.DATASET, reference.MODEL) and list(clean) == [reference.TRAINING_IMAGES]:
        return text + (
            "This sweep uses the same data set and network, by name and number of images."
        )
    images = ", ".join(f"{n:,}" for n in clean)
    easy = " Synthetic images are much easier to classify, and their triggers easier to learn."
    on = f" on {images} training images" if images else ""
    return (
        f"{text}This sweep used {ours[0]} with {ours[1]}{on}: the comparison shows trends"
        f" and is not a reproduction.{easy * ours[0].startswith('synthetic')}"
    )


def where(cells: Sequence[CellRecord]) -> list[str]:
    """Returns notes on the devices and software versions that the cells were run with, and on
    components whose code was modified. Devices and versions are listed by decreasing frequency."""
    devices = _frequent(cell.run.get("device") for cell in cells)
    versions = _frequent(each_once(_versions, [cell.run.get("versions") for cell in cells]))
    lines = [f"Device: {devices}."] if devices else []
    lines += [f"Versions: {versions}."] if versions else []
    lines += _given(cells)
    new = {name for cell in cells for name in unrecorded(cell)}
    edited = {name for cell in cells for name in cell.run.get("modified") or []} - new
    named = ((MODIFIED, edited), (UNRECORDED, new))
    return lines + [text.format(", ".join(sorted(names))) for text, names in named if names]


def _given(cells: Sequence[CellRecord]) -> list[str]:
    """Returns a note on the attacked networks that were read from files."""
    given = [cell.run["attacked"] for cell in cells if cell.given]
    files = {str(each.get("weights"))[:8]: Path(str(each.get("file"))).name for each in given}
    named = [f"{weights} ({name})" for weights, name in files.items()]
    more = f" and {len(named) - _LISTED} more" if len(named) > _LISTED else ""
    return [GIVEN.format(", ".join(named[:_LISTED]) + more)] if named else []


def versions_shown(texts: Iterable[str]) -> list[str]:
    """Returns the note on the notation ``NAME@N`` if the `texts` of a table contain it.

    >>> versions_shown(["TPR@1%", "abl"]), len(versions_shown(["random@1 with spectral@2"]))
    ([], 1)
    """
    said = " ".join(texts)
    modified = bool(re.search(r"\w@\d+\+[0-9a-f]", said))
    return [AT] * bool(re.search(r"\w@\d+(?![\d%])", said)) + [AT_HASH] * modified


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
    """Returns seeds as text: a range if at least three are consecutive, otherwise a list.

    >>> seed_range([0, 1, 2]), seed_range([0, 2])
    ('0-2', '0, 2')
    """
    if len(seeds) > 2 and seeds[-1] - seeds[0] == len(seeds) - 1:
        return f"{seeds[0]}-{seeds[-1]}"
    return ", ".join(map(str, seeds))
