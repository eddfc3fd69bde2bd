"""Writes a poisoned data set with its card to a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from backdoor_lab.core.atomic_io import new_folder, write_atomic
from backdoor_lab.data.base import Arrays
from backdoor_lab.exchange.card import Described, dataset_card, readme
from backdoor_lab.exchange.card_file import CARD
from backdoor_lab.exchange.layouts import LAYOUTS, README
from backdoor_lab.exchange.write_folder import write_folder
from backdoor_lab.exchange.write_npz import write_npz
from backdoor_lab.exchange.write_parquet import write_parquet
from backdoor_lab.exchange.write_toolbox import write_toolbox
from backdoor_lab.results.seal import write_sealed

_WRITERS: dict[str, Callable[[Path, Arrays], None]] = dict(
    zip(LAYOUTS, (write_folder, write_npz, write_parquet, write_toolbox), strict=True)
)


def write_set(out: Path, arrays: Arrays, layout: str, described: Described) -> dict[str, Any]:
    """Writes a poisoned data set, whose poison is known, to the folder `out`, which must be new or
    empty. A test split without images is left out. Returns the card.

    `out` appears when all files are complete; after an error, nothing remains. Raises
    FileExistsError if `out` is not empty, StoreFullError if the disk is full, ConfigError if the
    layout needs pyarrow, which is not installed, or cannot hold so many images.
    """
    with new_folder(out) as folder:
        _WRITERS[layout](folder, arrays)
        card = dataset_card(folder, layout, arrays, described)
        write_atomic(folder / README, readme(card, described.command).encode())
        return write_sealed(folder / CARD, card)
