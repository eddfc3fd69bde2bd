"""python -m backdoor_lab.separation FOLDER: why a spectral filter finds a cell's poison, or not.

For every attacked network of a sweep and every layer that its filters looked at: how far the
poison lies from its class beside what the class varies by itself, and whether the top singular
direction points there. Needs the features and the poison in the store.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from backdoor_lab.errors import EXIT_BAD_CONFIG, EXIT_DONE, ConfigError, LabError
from backdoor_lab.reports.layout import flat, ratio_words, varied_config, words
from backdoor_lab.reports.markup import in_markdown, plain
from backdoor_lab.reports.page_pictures import in_target, late, material
from backdoor_lab.reports.records import Cell
from backdoor_lab.reports.separation import (
    FORMATS,
    Line,
    Separation,
    grid,
    separation,
    sheet,
)
from backdoor_lab.reports.stored import Shelf, raw_records
from backdoor_lab.reports.sweeps import one_sweep
from backdoor_lab.reports.terminal import printing
from backdoor_lab.reports.whereabouts import find_store
from backdoor_lab.reports.write import write_as_named

LABELS = ("trigger", "target", "ratio", "seed", "protocol.layer")
Record = dict[str, Any]


def main(arguments: list[str] | None = None) -> int:
    """Exit codes: 0; 2 for a folder that is no sweep, or has nothing in a store."""
    asked = _parser().parse_args(arguments)
    return printing(lambda: _tell(asked.folder, asked.store, asked.out))


def _tell(folder: str, store: Path | None, out: Path | None) -> int:
    try:
        if store is not None and not store.is_dir():
            raise ConfigError(f"no such folder: {store}")
        sweep = one_sweep(folder)
        shelf = Shelf(find_store(sweep.folder, store))
        labels, lines = lines_of(sweep.cells, raw_records(sweep.folder), shelf)
        if not lines:
            why = f": {'; '.join(shelf.notes)}" if shelf.notes else ""
            raise ConfigError(
                f"no done cell of {sweep.folder} has features and poison in the store{why}. Run the"
                " sweep where its store is, or name that with --store"
            )
        table = grid(f"{sweep.folder.name}: separation", labels, lines)
        if out is not None:
            texts = {name: text(table) for name, text in FORMATS.items()}
            write_as_named(out, {"csv": sheet(labels, lines)} | texts)
    except LabError as error:
        print(plain(f"error: {error}"), file=sys.stderr)
        return EXIT_BAD_CONFIG
    print(in_markdown(table))
    for note in shelf.notes:
        print(plain(f"note: {note}"))
    return EXIT_DONE


def lines_of(
    cells: Sequence[Cell], records: dict[str, Record], shelf: Shelf
) -> tuple[list[str], list[Line]]:
    """The labels, and a line for every stage of features that the store has beside its poison;
    defenses that looked at the same features share one."""
    found: dict[str, tuple[Cell, Separation]] = {}
    for cell in cells:
        record = records.get(cell.id)
        stage = _stage(cell)
        if not cell.done or record is None or stage is None or stage in found or late(record):
            continue
        told = _separation(shelf, record)
        if told is not None:
            found[stage] = cell, told
    shown = [cell for cell, _ in found.values()]
    labels = _labels(shown)
    lines = [Line(tuple(_named(cell)[n] for n in labels), told) for cell, told in found.values()]
    return [label.removeprefix("config.") for label in labels], lines


def _stage(cell: Cell) -> str | None:
    stages = cell.run.get("stages")
    entry = stages.get("extract") if isinstance(stages, dict) else None
    return str(entry["id"]) if isinstance(entry, dict) and "id" in entry else None


def _separation(shelf: Shelf, record: Record) -> Separation | None:
    found = material(shelf, record)
    if found is None:
        return None
    where = in_target(found)
    values = shelf.features(record, where, len(found.training.index))
    poison = found.training.is_poison[where]
    if values is None or not np.isfinite(values).all() or poison.all() or not poison.any():
        return None
    return separation(values, poison)


def _named(cell: Cell) -> defaultdict[str, str]:
    """What a cell was asked for and the values of its protocol and configuration, in words."""
    config = dict(flat(json.loads(cell.config or "{}")))
    config |= {f"protocol.{name}": value for name, value in (cell.protocol or {}).items()}
    named = {name: words(value) for name, value in (config | cell.choices).items()}
    named["ratio"] = ratio_words(cell.choices["ratio"], counted=False)
    return defaultdict(lambda: words(None), named)


def _labels(cells: Sequence[Cell]) -> list[str]:
    """What tells the lines: the attack, whatever else was asked for and varies, and the layer."""
    asked = [n for cell in cells for n in cell.choices if n not in ("defense", *LABELS)]
    config = [n for n in varied_config(cells) if not n.startswith(("defense.", "protocol."))]
    varied = [
        name for name in dict.fromkeys([*asked, *config])
        if len({_named(cell)[name] for cell in cells}) > 1
    ]  # fmt: skip
    return [*LABELS[:-1], *varied, LABELS[-1]]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m backdoor_lab.separation", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("folder", metavar="FOLDER", help="a sweep")
    parser.add_argument(
        "--store", metavar="PATH", type=Path,
        help="the store (default: that of the last run, else .store beside the sweep)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="FILE.csv", help="also .md, .tex, .html")
    return parser


if __name__ == "__main__":
    sys.exit(main())
