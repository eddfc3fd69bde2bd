"""Reads the folder of a saved PoisonResult."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from backdoor_lab.core import validation
from backdoor_lab.core.atomic_io import sha256_of
from backdoor_lab.core.errors import ConfigError, DataError
from backdoor_lab.core.small_files import DamagedFileError, check_regular
from backdoor_lab.exchange.card_file import CARD, FORMAT, CardFile, part, read_card
from backdoor_lab.exchange.layouts import NPZ
from backdoor_lab.exchange.own_arrays import checked_arrays
from backdoor_lab.exchange.own_card import SetCard, contradictions, set_card
from backdoor_lab.exchange.own_npz import read_npz
from backdoor_lab.results.seal import read_sealed

ARRAYS = ("images", "labels", "is_poison", "is_cover", "source_index")
"""The attributes of a PoisonResult that are arrays."""
_INTEGERS = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))


def saved_fields(folder: Path) -> dict[str, Any]:
    """Returns the attributes of the PoisonResult in `folder`. Raises ValueError, DataError or
    ConfigError if a file is missing or damaged, or if `PoisonResult.save` did not write it."""
    file = _card(folder / CARD)
    try:
        card = set_card(file)
        facts, kind, tensors = _facts(file, card.classes)
    except (ConfigError, DataError) as error:
        said = str(error).removeprefix(f"{file.path}: ")
        raise ValueError(f"{file.path}: {said}; `save` did not write this card") from error
    arrays = _arrays(folder / NPZ, card)
    labels = arrays["labels"].astype(kind)
    if not np.array_equal(labels, arrays["labels"]):
        raise ValueError(f"{file.path}: `python.labels` is {kind}, too small for the labels")
    arrays["labels"] = labels
    for name in tensors:
        arrays[name] = torch.from_numpy(arrays[name])
    return arrays | facts


def _card(path: Path) -> CardFile:
    if not path.exists():
        raise ValueError(
            f"{path} is missing: the folder holds no complete PoisonResult. A folder of an older"
            " version, with poisoned.json, must be saved again: poison the images anew"
        )
    try:
        read_sealed(path)
    except DamagedFileError:
        raise
    except DataError as error:
        raise ValueError(f"{path}: {error}") from error
    card = read_card(path)
    known = card.content.get("format")
    if type(known) is not int or known != FORMAT:
        raise ValueError(f"{path} has the format {known!r}; this version reads {FORMAT}")
    if "python" not in card.content:
        raise ValueError(
            f"{path} is not the card of a PoisonResult, but of an exported cell: use"
            " dataset=poisoned on the command line"
        )
    return card


def _facts(file: CardFile, classes: tuple[str, ...]) -> tuple[dict[str, Any], str, list[str]]:
    """Returns the attributes of the result that are not arrays, the dtype of the labels, and the
    names of the arrays that were tensors."""
    card = file.content
    protocol, kept = part(card, "protocol"), part(card, "python")
    tensors = kept.get("tensors")
    if not isinstance(tensors, list) or any(name not in ARRAYS for name in tensors):
        raise ConfigError(f"`python.tensors` must be names of {ARRAYS}, got {tensors!r}")
    kind = validation.choice("python.labels", kept.get("labels"), _INTEGERS)
    target, source = card["target"], card.get("source")
    numbers = {name: number for number, name in enumerate(classes)}
    facts = {
        "protocol": f"{validation.text('protocol.name', protocol.get('name'))}"
        f"@{validation.whole('protocol.version', protocol.get('version'))}",
        "trigger": card["trigger"],
        "target": numbers[validation.choice("target", target, classes)],
        "source": None if source is None else numbers[source],
        "ratio": validation.share("ratio", card.get("ratio")),
        "seed": validation.whole("seed", card.get("seed"), below=2**63),
    }
    return facts, kind, tensors


def _arrays(path: Path, card: SetCard) -> dict[str, Any]:
    check_regular(path)
    if not path.exists():
        raise ValueError(f"{path} is missing")
    if sha256_of(path) != card.files.get(NPZ):
        raise ValueError(f"{path} is damaged: its hash is not the one in {CARD}")
    arrays = checked_arrays(read_npz(path.parent, card.classes)[0], path)
    for field, stated, found in contradictions(card, arrays):
        raise ValueError(f"{path}: `{field}` is {found!r}, but {CARD} says {stated!r}")
    train, attack = arrays.train, arrays.attack
    marks = {name: getattr(attack, name) for name in ARRAYS[2:]}
    return {"images": train.images, "labels": train.labels} | marks
