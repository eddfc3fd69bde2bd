"""A question put to what a sweep has in the store: a line for each network or verdict, as a table
and as a file, and the command around it."""

from __future__ import annotations

import json
import math
import sys
from argparse import Namespace
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from backdoor_lab.core.errors import EXIT_DONE, ConfigError
from backdoor_lab.core.options import Parser, parser_of, path_of
from backdoor_lab.core.terminal import plain, run_command
from backdoor_lab.page.page_pictures import late
from backdoor_lab.page.write import check_name, write_as_named
from backdoor_lab.results.records import Cell
from backdoor_lab.results.stored import Shelf, raw_records
from backdoor_lab.results.sweeps import Sweep, one_sweep
from backdoor_lab.results.values import flat, ratio_words, words
from backdoor_lab.results.whereabouts import find_store
from backdoor_lab.tables.markup import Grid, short
from backdoor_lab.tables.writers import FORMATS, Document, markdown

Record = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Line:
    """One answer: what tells it from the others, and the figures, a dataclass of numbers."""

    names: tuple[str, ...]
    found: Any


Answers = tuple[list[str], list[Line]]
LinesOf = Callable[[Sequence[Cell], dict[str, Record], Shelf], Answers]


@dataclass(frozen=True)
class Question:
    """`name` of the command, `asks` for its help, `kind` of the figures with a head for each of its
    fields, `notes` below the table, `wants` from the store, `text` of one figure."""

    name: str
    asks: str | None
    kind: type
    heads: dict[str, str]
    notes: Sequence[str]
    wants: str
    text: Callable[[str, float], str]


def answer(question: Question, lines_of: LinesOf, arguments: Sequence[str] | None) -> int:
    """The command: prints the table, and writes it where asked. Exit codes: 0; 2 for a folder that
    is no sweep, or has nothing in a store."""
    return run_command(
        _parser(question), lambda asked: _answer(question, lines_of, asked), arguments
    )


def _answer(question: Question, lines_of: LinesOf, asked: Namespace) -> int:
    store = asked.store
    if asked.out is not None:
        check_name(asked.out, FORMATS)
    if store is not None and not store.is_dir():
        raise ConfigError(f"no such folder: {store}")
    sweep = one_sweep(asked.folder)
    shelf = Shelf(find_store(sweep.folder, store), checked=True)
    labels, lines = lines_of(sweep.cells, raw_records(sweep.folder), shelf)
    if not lines:
        raise ConfigError(_nothing(question, sweep, shelf))
    found = _document(question, f"{sweep.folder.name}: {question.name}", labels, lines)
    if asked.out is not None:
        write_as_named(asked.out, {name: text(found) for name, text in FORMATS.items()})
    print(markdown(found))
    for warning in sweep.warnings:
        print(plain(f"warning: {warning}"), file=sys.stderr)
    for note in shelf.notes:
        print(plain(f"note: {note}"))
    return EXIT_DONE


def _nothing(question: Question, sweep: Sweep, shelf: Shelf) -> str:
    reasons = [*sweep.warnings, *shelf.notes]
    why = f": {'; '.join(reasons)}" if reasons else ""
    return (
        f"no done cell of {sweep.folder} has {question.wants} in the store{why}. Run the sweep"
        " where its store is, or name that with --store"
    )


def collect(
    cells: Sequence[Cell],
    records: dict[str, Record],
    stage: str,
    tell: Callable[[Record], T | None],
) -> list[tuple[Cell, T]]:
    """What `tell` says of the record of every done cell, once for each output of `stage`; left out
    where it says None, and where the trigger is stamped late: the store has clean images then."""
    found: dict[str, tuple[Cell, T]] = {}
    for cell in cells:
        record, at = records.get(cell.id), _place(cell, stage)
        if not cell.done or record is None or at is None or at in found or late(record):
            continue
        said = tell(record)
        if said is not None:
            found[at] = cell, said
    return list(found.values())


def _place(cell: Cell, name: str) -> str | None:
    """The id under which a cell's stage lies in the store."""
    stages = cell.run.get("stages")
    entry = stages.get(name) if isinstance(stages, dict) else None
    return str(entry["id"]) if isinstance(entry, dict) and "id" in entry else None


def named(cell: Cell) -> defaultdict[str, str]:
    """What a cell was asked for and the values of its protocol and configuration, in words."""
    config = dict(flat(json.loads(cell.config or "{}")))
    config |= {f"protocol.{name}": value for name, value in (cell.protocol or {}).items()}
    values = {name: words(value) for name, value in (config | cell.choices).items()}
    values["ratio"] = ratio_words(cell.choices["ratio"], config.get("protocol.ratio_of"))
    return defaultdict(lambda: words(None), values)


def _document(
    question: Question, title: str, labels: Sequence[str], lines: Sequence[Line]
) -> Document:
    """The answers ready to be written; in a spreadsheet unrounded, empty where none is defined."""
    names = [field.name for field in fields(question.kind)]
    rows, values = [], []
    for each in lines:
        figures = asdict(each.found).items()
        rows.append([*map(short, each.names), *(question.text(name, v) for name, v in figures)])
        values.append([*each.names, *(v if math.isfinite(v) else None for _, v in figures)])
    heads = [*labels, *(question.heads[name] for name in names)]
    grid = Grid(title, heads, rows, list(question.notes), len(labels))
    return Document(title, [grid], [*labels, *names], values)


def _parser(question: Question) -> Parser:
    parser = parser_of(question.name, question.asks)
    parser.add_argument("folder", metavar="FOLDER", help="a sweep")
    parser.add_argument(
        "--store", metavar="PATH", type=path_of,
        help="the store (default: that of the last run, else .store beside the sweep)",
    )  # fmt: skip
    parser.add_argument("--out", type=path_of, metavar="FILE.csv", help="also .md, .tex, .html")
    return parser
