"""Reads the data that a card is checked on."""

from __future__ import annotations

import re
from pathlib import Path

from backdoor_lab.core.atomic_io import digest
from backdoor_lab.core.errors import ConfigError, DataError
from backdoor_lab.data.base import Arrays
from backdoor_lab.exchange.backdoorbench import (
    backdoorbench_facts,
    backdoorbench_identity,
    is_backdoorbench,
    read_backdoorbench,
)
from backdoor_lab.exchange.network_card import card_at
from backdoor_lab.exchange.network_file import CARD, card_of
from backdoor_lab.exchange.toolbox import (
    is_toolbox,
    read_toolbox,
    toolbox_facts,
    toolbox_identity,
)
from backdoor_lab.verify.finding import Finding

WEIGHTS = (".safetensors", ".pt", ".pth", ".ckpt")
"""The endings of files of weights."""
_KEY = re.compile(r"`?dataset\.(clean|test)_root`?")


def read_set(root: Path, clean: Path | None) -> Arrays:
    """Returns the poisoned data set in the folder `root`. `clean` is the clean data set, for
    layouts that lack it. Raises DataError if it cannot be read."""
    try:
        if is_backdoorbench(root):
            return read_backdoorbench(root, clean_root=clean)
        if is_toolbox(root):
            return read_toolbox(root, test_root=clean)
    except DataError as error:
        raise DataError(_KEY.sub("--clean", str(error))) from error
    raise DataError(f"{root}: not a poisoned data set in a known layout")


def facts_of(root: Path, clean: Path | None) -> Finding:
    """Returns a note on what the files of the set in the folder `root` say about the attack, and
    the hash of these files; arguments as for `read_set`. Raises DataError for damaged files."""
    if is_backdoorbench(root):
        facts, files = backdoorbench_facts(root, clean), backdoorbench_identity(root, clean)
    else:
        facts, files = toolbox_facts(root, clean), toolbox_identity(root, test_root=clean)
    known: dict[str, object] = {
        "trigger": facts.trigger,
        "target": facts.target,
        "source": facts.source,
    }
    known |= {"poisoned": facts.n_poisoned, "covers": facts.n_covers, "files": digest(files, 16)}
    said = ", ".join(f"{name} {value}" for name, value in known.items() if value is not None)
    return Finding("data", "note", said)


def cell_of(root: Path) -> str | None:
    """Returns the cell that the set's own card names; None if there is none."""
    path = root / CARD
    cell = card_at(path).get("cell") if path.is_file() else None
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
