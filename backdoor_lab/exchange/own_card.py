"""The card of a poisoned data set of this package: DIR/card.json."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backdoor_lab.core import validation
from backdoor_lab.core.atomic_io import digest
from backdoor_lab.core.errors import ConfigError, DataError
from backdoor_lab.core.types import ImportedAttack, ImportedFacts
from backdoor_lab.data.base import Arrays, Split
from backdoor_lab.data.cache import content_digest
from backdoor_lab.exchange.card_file import (
    CARD,
    CardFile,
    Normalization,
    class_list,
    image_shape,
    normalization_of,
    part,
    read_card,
)
from backdoor_lab.exchange.layouts import LAYOUTS, SPLITS

COUNTS = ("train", "test", "poisoned", "covers", "triggered", "triggered_elsewhere")
REQUIRED = (
    "format", "kind", "layout", "dataset", "trigger", "target", "protocol", "counts",
    "normalization", "hashes", "seal",
)  # fmt: skip
OPTIONAL = (
    "backdoor_lab", "cell", "source", "ratio", "seed", "license", "warning", "python",
)  # fmt: skip
_NO_FACT = ("backdoor_lab", "cell", "license", "warning", "python", "seal")
ALL_TO_ALL = "all_to_all"
_HASH = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class SetCard:
    """The fields of the card of a poisoned data set.

    `stated` maps the fields that can be measured, such as ``counts.train``, to their values; see
    `measured`. `files` maps the path of every file of the set to its SHA-256. `identity` is a hash
    of everything that the card states about the set and its attack.
    """

    layout: str
    classes: tuple[str, ...]
    stated: dict[str, Any]
    files: dict[str, str]
    facts: ImportedFacts
    normalization: Normalization | None
    sealed: bool
    identity: str

    @property
    def has_test(self) -> bool:
        """Whether the set has clean test images."""
        return bool(self.stated["counts.test"])


def own_card(root: Path) -> CardFile | None:
    """Returns the card of the poisoned data set in the folder `root`; None if there is no card, or
    that of a network. Raises DataError if the card cannot be read."""
    if not (root / CARD).exists():
        return None
    card = read_card(root / CARD)
    return card if card.content.get("kind") == "dataset" else None


def set_card(card: CardFile) -> SetCard:
    """Returns the fields of the card of a poisoned data set. Raises DataError, which names the file
    and the field, for a missing field, a value of another type or outside its range, and names of
    classes that the card does not list."""
    try:
        return _parsed(card)
    except ConfigError as error:
        raise DataError(f"{card.path}: {error}") from error


def _parsed(file: CardFile) -> SetCard:
    card = file.content
    if missing := [key for key in REQUIRED if key not in card]:
        raise ConfigError(f"`{missing[0]}` is missing")
    validation.keys("", card, (*REQUIRED, *OPTIONAL))
    file.kind()
    layout = validation.choice("layout", card["layout"], LAYOUTS)
    described, hashes = part(card, "dataset"), part(card, "hashes")
    if described.get("name") is not None:
        validation.text("dataset.name", described["name"])
    classes = class_list("dataset.classes", described.get("classes"))
    image = image_shape("dataset.image", described.get("image"))
    validation.choice("dataset.image[0]", image[0], (1, 3))
    stated: dict[str, Any] = {"dataset.classes": list(classes), "dataset.image": list(image)}
    counts = _counts(part(card, "counts"))
    stated |= {f"counts.{name}": value for name, value in counts.items()}
    for name in SPLITS:
        said = hashes.get(name)
        stated[f"hashes.{name}"] = None if said is None else _hash(f"hashes.{name}", said)
    files = {
        name: _hash(f"hashes.files.{name}", value)
        for name, value in part(hashes, "files").items()
    }  # fmt: skip
    if not files:
        raise ConfigError("`hashes.files` must list every file of the set")
    said = card["normalization"]
    normalization = None if said is None else normalization_of(said)
    if normalization is not None and len(normalization[0]) != image[0]:
        raise ConfigError(
            f"`normalization` must have {image[0]} channels, as `dataset.image`, got"
            f" {len(normalization[0])}"
        )
    known = {key: value for key, value in card.items() if key not in _NO_FACT}
    return SetCard(
        layout, classes, stated, files, _facts(card, classes, counts), normalization,
        file.sealed is True, digest(known),
    )  # fmt: skip


def _counts(said: dict[str, Any]) -> dict[str, int]:
    validation.keys("counts", said, COUNTS)
    given = {name: said.get(name) for name in COUNTS}
    found = {
        name: 0 if value is None else validation.whole(f"counts.{name}", value)
        for name, value in given.items()
    }
    if found["poisoned"] + found["covers"] > found["train"]:
        raise ConfigError(
            f"`counts.poisoned` and `counts.covers` must not exceed `counts.train`, got"
            f" {found['poisoned']} and {found['covers']} of {found['train']}"
        )
    return found


def _hash(name: str, value: Any) -> str:
    if not isinstance(value, str) or not _HASH.fullmatch(value):
        raise ConfigError(f"`{name}` must be a SHA-256 of 64 hex digits, got {value!r}")
    return value


def _facts(card: dict[str, Any], classes: tuple[str, ...], counts: dict[str, int]) -> ImportedFacts:
    trigger, protocol = part(card, "trigger"), dict(part(card, "protocol"))
    for name in ("target", "source"):
        if card.get(name) is not None:
            validation.choice(name, card[name], classes)
    ratio, seed = card.get("ratio"), card.get("seed")
    name, version = protocol.pop("name", None), protocol.pop("version", None)
    if name is not None:
        validation.text("protocol.name", name)
    if version is not None:
        validation.whole("protocol.version", version)
    for key, value in protocol.items():
        if key == "cover_rate":
            validation.number(f"protocol.{key}", value, low=0)
        else:
            validation.text(f"protocol.{key}", value)
    return ImportedFacts(
        trigger=validation.text("trigger.name", trigger.get("name")),
        options={k: v for k, v in trigger.items() if k not in ("name", "version")},
        target=card["target"],
        source=card.get("source"),
        ratio=None if ratio is None else validation.number("ratio", ratio, low=0),
        seed=None if seed is None else validation.whole("seed", seed, below=2**63),
        protocol=None if name is None else name if version is None else f"{name}@{version}",
        choices=protocol,
        n_poisoned=counts["poisoned"],
        n_covers=counts["covers"],
        triggered=counts["triggered"] > 0,
    )


def measured(arrays: Arrays) -> dict[str, Any]:
    """Returns the fields of a card that follow from the images of a poisoned data set, as the
    card's ``dataset``, ``counts`` and ``hashes`` state them: ``dataset.classes``,
    ``dataset.image``, ``counts.train``, ..., ``hashes.triggered``. A value is None if the set does
    not have what it describes."""
    attack = arrays.attack or ImportedAttack()
    scored = scored_images(attack)
    elsewhere = attack.elsewhere
    counts = {
        "train": len(arrays.train.labels),
        "test": len(arrays.test.labels),
        "poisoned": None if attack.is_poison is None else int(attack.is_poison.sum()),
        "covers": None if attack.is_cover is None else int(attack.is_cover.sum()),
        "triggered": 0 if scored is None else len(scored.labels),
        "triggered_elsewhere": 0 if elsewhere is None else int(elsewhere.sum()),
    }
    splits = dict(zip(SPLITS, (arrays.train, arrays.test, scored), strict=True))
    hashes = {
        name: content_digest(split, arrays.classes) if split and len(split.labels) else None
        for name, split in splits.items()
    }
    found: dict[str, Any] = {
        "dataset.classes": list(arrays.classes),
        "dataset.image": list(arrays.train.images.shape[1:]),
    }
    found |= {f"counts.{name}": value for name, value in counts.items()}
    return found | {f"hashes.{name}": value for name, value in hashes.items()}


def scored_images(attack: ImportedAttack) -> Split | None:
    """Returns the triggered test images that count for the attack success rate, with the labels
    that the attacker wants; None if there are no triggered test images."""
    if attack.triggered is None or attack.wanted is None:
        return None
    if attack.elsewhere is None:
        return Split(attack.triggered, attack.wanted)
    return Split(attack.triggered[~attack.elsewhere], attack.wanted[~attack.elsewhere])


def scored_originals(attack: ImportedAttack) -> NDArray[np.int64] | None:
    """Returns the indices of the test images that the images of `scored_images` were made from, -1
    for unknown ones; None if all are unknown."""
    if attack.test_index is None or attack.elsewhere is None:
        return attack.test_index
    return attack.test_index[~attack.elsewhere]


def classes_of_originals(arrays: Arrays) -> list[str]:
    """Returns the names of the classes that the images of `scored_images` had before the attack;
    empty if their originals are not known."""
    rows = scored_originals(arrays.attack or ImportedAttack())
    known = rows is not None and len(arrays.test.labels) and (rows >= 0).all()
    return _names(arrays.test.labels[rows], arrays) if known else []


def contradictions(card: SetCard, arrays: Arrays) -> Iterator[tuple[str, Any, Any]]:
    """Yields each field of the card that the images contradict, with the stated value and the
    measured one."""
    for field, value in measured(arrays).items():
        stated = card.stated[field]
        if stated != value:
            yield field, stated, value
    attack, facts = arrays.attack or ImportedAttack(), card.facts
    if facts.target is not None and facts.choices.get("label_mode") != ALL_TO_ALL:
        labels = [] if attack.is_poison is None else [arrays.train.labels[attack.is_poison]]
        scored = scored_images(attack)
        labels += [] if scored is None else [scored.labels]
        names = _names(np.concatenate(labels or [np.empty(0, np.int64)]), arrays)
        if names and names != [facts.target]:
            yield "target", facts.target, ", ".join(names)
    if facts.choices.get("asr_on") == "source":
        names = classes_of_originals(arrays)
        if names and names != [facts.source]:
            yield "source", facts.source, ", ".join(names)


def _names(labels: Any, arrays: Arrays) -> list[str]:
    return [arrays.classes[label] for label in np.unique(labels)]
