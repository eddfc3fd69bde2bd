"""Checks what the card of a poisoned data set says about the set itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backdoor_lab.core.errors import many
from backdoor_lab.core.types import ImportedAttack
from backdoor_lab.data.base import Arrays
from backdoor_lab.exchange.card_file import part
from backdoor_lab.exchange.own_card import classes_of_originals, measured
from backdoor_lab.exchange.own_files import MISSING, differing_files
from backdoor_lab.exchange.own_set import layouts_in
from backdoor_lab.verify.finding import Finding
from backdoor_lab.verify.network import Material

CHECKED = {"format", "kind", "layout", "dataset", "counts", "hashes", "target", "source", "seal"}


def check_set(card: dict[str, Any], arrays: Arrays, root: Path) -> list[Finding]:
    """Compares a poisoned set with its card. `root` is the folder that the paths in `hashes.files`
    are relative to. Raises ConfigError for fields of another type."""
    attack = arrays.attack or ImportedAttack()
    material = Material.of(arrays)
    found = [
        *_layout(card.get("layout"), root),
        *_measured(card, arrays),
        *_files(part(part(card, "hashes"), "files"), root),
        *_labels(card, arrays, attack, material),
        *_source(card, arrays),
        *_changes(arrays, material),
        *_originals(card, arrays, attack),
    ]
    others = sorted(key for key in card.keys() - CHECKED if card[key] is not None)
    return found + [Finding(key, "not checked") for key in others]


def _compared(field: str, said: Any, found: Any) -> Finding:
    if said is None:
        return Finding(field, "not checked", "absent")
    if said == found and type(said) is type(found):
        return Finding(field, "true")
    return Finding(field, "false", f"the card says {said!r}, the set has {found!r}")


def _layout(said: Any, root: Path) -> Iterator[Finding]:
    if said is not None:
        found = layouts_in(root)
        why = "" if said in found else f"the files are those of {' or '.join(found) or 'no layout'}"
        yield Finding("layout", "false" if why else "true", why)


def _measured(card: dict[str, Any], arrays: Arrays) -> Iterator[Finding]:
    """The classes, the shape of the images, the counts, and the hashes of the splits."""
    has_test = bool(part(card, "counts").get("test")) or part(card, "hashes").get("test")
    for field, found in measured(arrays).items():
        group, _, name = field.partition(".")
        said = part(card, group).get(name)
        if field == "counts.test" and said is not None and not has_test and found:
            yield Finding(field, "not checked", "the test images are those of another data set")
        elif found is None and group == "counts":
            yield Finding(field, "not checked", "the set does not mark its poison")
        else:
            yield _compared(field, said, found)


def _files(said: dict[str, Any], root: Path) -> Iterator[Finding]:
    if not said:
        return
    wrong = [
        f"{name} is missing" if found == MISSING else f"{name} has another hash"
        for name, found in differing_files(root, said)
    ]
    more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
    yield Finding(
        "hashes.files", "false" if wrong else "true", f"{wrong[0]}{more}" if wrong else ""
    )


def _source(card: dict[str, Any], arrays: Arrays) -> Iterator[Finding]:
    """The originals of the triggered test images are of the source class."""
    said, names = card.get("source"), classes_of_originals(arrays)
    on_source = part(card, "protocol").get("asr_on") == "source"
    if said is None and not (on_source and names):
        return
    if not on_source or not names:
        yield Finding("source", "not checked", "the triggered test images do not tell it")
    else:
        others = f"the card says {said!r}, the triggered test images are of {', '.join(names)}"
        why = "" if names == [said] else others
        yield Finding("source", "false" if why else "true", why)


def _labels(
    card: dict[str, Any], arrays: Arrays, attack: ImportedAttack, material: Material
) -> Iterator[Finding]:
    """The labels of the poison and of the triggered test images are the target."""
    target = card.get("target")
    if part(card, "protocol").get("label_mode") == "all_to_all":
        yield Finding("target", "not checked", "every class has its own target")
        return
    if target is None:
        yield Finding("target", "not checked", "absent")
        return
    if target not in arrays.classes:
        yield Finding("target", "false", f"{target!r} is not a class of the set")
        return
    wanted = arrays.classes.index(target)
    marked = {
        "poisoned image": None
        if attack.is_poison is None
        else arrays.train.labels[attack.is_poison],
        "triggered test image": None if material.triggered is None else material.triggered.labels,
    }
    known = {what: labels for what, labels in marked.items() if labels is not None}
    odd = {what: int((labels != wanted).sum()) for what, labels in known.items()}
    wrong = [f"{many(n, what)} of {len(known[what])} with another label" for what, n in odd.items()
             if n]  # fmt: skip
    if wrong:
        yield Finding("target", "false", "; ".join(wrong))
    else:
        why = "" if known else "the set marks no poison and has no triggered test images"
        yield Finding("target", "true" if known else "not checked", why)


def _changes(arrays: Arrays, material: Material) -> Iterator[Finding]:
    """Whether the triggered test images differ from their originals, and in how many ways."""
    triggered, rows = material.triggered, material.rows
    if triggered is None or not len(triggered.labels):
        return
    field, n = "triggered test images", len(triggered.labels)
    if rows is None or (rows < 0).any():
        yield Finding(field, "not checked", "their originals are not known")
        return
    yield from _differ(field, triggered.images, arrays.test.images[rows], n)


def _originals(card: dict[str, Any], arrays: Arrays, attack: ImportedAttack) -> Iterator[Finding]:
    """The same for poisoned training images, if their originals are in the set."""
    poison, cover, source = attack.is_poison, attack.is_cover, attack.source_index
    if poison is None or source is None or not poison.any():
        return
    field = "poisoned images"
    clean = ~poison if cover is None else ~(poison | cover)
    appended = part(card, "protocol").get("placement") == "append"
    wanted = source[poison]
    if not appended or wanted.min() < 0 or wanted.max() >= clean.sum():
        yield Finding(field, "not checked", "their originals are not in the set")
        return
    images = arrays.train.images
    yield from _differ(field, images[poison], images[clean][wanted], int(poison.sum()))


def _differ(field: str, images: NDArray[Any], originals: NDArray[Any], n: int) -> Iterator[Finding]:
    change = images.astype(np.int16) - originals
    equal = int((~change.reshape(n, -1).any(axis=1)).sum())
    if equal == n:
        yield Finding(field, "false", f"none of {n} differs from its original")
        return
    yield Finding(field, "true", f"{n - equal} of {n} differ from their originals")
    distinct = len({row.tobytes() for row in change})
    yield Finding(field, "note", f"{many(distinct, 'distinct change')} in {n} images")
