"""Reads the data that a card is checked on."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from backdoor_lab.core.atomic_io import digest
from backdoor_lab.core.errors import ConfigError, DataError
from backdoor_lab.data.base import Arrays
from backdoor_lab.exchange.card_file import CARD, read_card
from backdoor_lab.exchange.network_file import card_of
from backdoor_lab.exchange.own_set import OwnSet
from backdoor_lab.exchange.source import PoisonedFiles, poisoned_files
from backdoor_lab.verify.finding import Finding

WEIGHTS = (".safetensors", ".pt", ".pth", ".ckpt")
"""The endings of files of weights."""
_KEY = re.compile(r"`?dataset\.(clean|test)_root`?")


@dataclass(frozen=True)
class MeasuredSet:
    """A poisoned data set. `note` tells what its files say about the attack, and their hash;
    `cell` is the cell that the set's own card names, None if there is none. `own` is the set with
    that card; None if it has no card."""

    arrays: Arrays
    note: Finding
    cell: str | None
    own: OwnSet | None


def read_set(root: Path, clean: Path | None) -> MeasuredSet:
    """Returns the poisoned data set in the folder `root`, in any layout, without comparing it with
    its own card. `clean` is the clean data set, for layouts that lack it. Raises DataError if it
    cannot be read."""
    try:
        files = poisoned_files(root, test_root=clean, clean_root=clean, trusting=True)
        own = files if isinstance(files, OwnSet) else None
        return MeasuredSet(files.read(), _note(files), _cell(root), own)
    except DataError as error:
        raise DataError(_KEY.sub("--clean", str(error))) from error


def _note(files: PoisonedFiles) -> Finding:
    facts = files.facts()
    known: dict[str, object] = {
        "trigger": facts.trigger,
        "target": facts.target,
        "source": facts.source,
    }
    known |= {"poisoned": facts.n_poisoned, "covers": facts.n_covers}
    known |= {"files": digest(files.identity(), 16)}
    said = ", ".join(f"{name} {value}" for name, value in known.items() if value is not None)
    return Finding("data", "note", said)


def _cell(root: Path) -> str | None:
    path = root / CARD
    cell = read_card(path).content.get("cell") if path.is_file() else None
    return cell if isinstance(cell, str) else None


def network_in(folder: Path, claims: Path) -> Path:
    """Returns the file of weights in a folder: the one that the card `claims` belongs to by its
    name, or the only one. Raises ConfigError if there is none or if there are several."""
    found = sorted(path for path in folder.iterdir() if path.suffix in WEIGHTS)
    named = [path for path in found if card_of(path).name == claims.name]
    chosen = named if len(named) == 1 else found
    if len(chosen) == 1:
        return chosen[0]
    if not found:
        raise ConfigError(
            f"{folder}: there is no file of weights ({', '.join(WEIGHTS)}), but the card is that of"
            " a network: give the file instead of the folder"
        )
    raise ConfigError(
        f"{folder}: there are {len(found)} files of weights: give one of"
        f" {', '.join(path.name for path in found[:5])}, and the folder with --data"
    )
