"""Code shared by the commands that analyze what a sweep stored. They print a table with one line
per network or per filter result, and can write the table to a file."""

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
from backdoor_lab.core.options import Parser, add_plugin_words, parser_of, path_of
from backdoor_lab.core.terminal import plain, run_command
from backdoor_lab.page.page_pictures import is_triggered_late
from backdoor_lab.page.write import check_name, write_as_named
from backdoor_lab.plugin_configs import trust_words
from backdoor_lab.results.artifact_reader import ArtifactReader, raw_records
from backdoor_lab.results.records import CellRecord
from backdoor_lab.results.store_location import STORE_HELP, find_store
from backdoor_lab.results.sweeps import Sweep, one_sweep
from backdoor_lab.results.values import flat, ratio_words, words
from backdoor_lab.results.versions import SECTIONS, versioned
from backdoor_lab.tables.markup import TextTable, short
from backdoor_lab.tables.writers import FORMATS, OUT_HELP, Document, terminal

Record = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class AnswerRow:
    """One line of a table: its labels, and a dataclass instance with its statistics."""

    names: tuple[str, ...]
    found: Any


Answers = tuple[list[str], list[AnswerRow]]
LinesOf = Callable[[Sequence[CellRecord], dict[str, Record], ArtifactReader], Answers]


@dataclass(frozen=True)
class AnalysisSpec:
    """The description of an analysis command.

    `name` is its name, `asks` its help text. `kind` is a dataclass whose fields are the statistics
    of a line, `heads` the column heading of each field, and `text` formats the value of a field.
    `notes` are printed below the table. `wants` lists what the command needs from the store, as
    text for messages.
    """

    name: str
    asks: str | None
    kind: type
    heads: dict[str, str]
    notes: Sequence[str]
    wants: str
    text: Callable[[str, float], str]


def answer(question: AnalysisSpec, lines_of: LinesOf, arguments: Sequence[str] | None) -> int:
    """Run an analysis command: print the table and, with --out, write it to a file.

    Exit codes: 0 done, 2 if the folder is not a sweep or its store has nothing to analyze.
    """
    return run_command(
        _parser(question), lambda asked: _answer(question, lines_of, asked), arguments
    )


def _answer(question: AnalysisSpec, lines_of: LinesOf, asked: Namespace) -> int:
    store = asked.store
    if asked.out is not None:
        check_name(asked.out, FORMATS)
    if store is not None and not store.is_dir():
        raise ConfigError(f"no such folder: {store}")
    trust_words(asked.plugins)
    sweep = one_sweep(asked.folder)
    reader = ArtifactReader(find_store(sweep.folder, store), checked=True)
    labels, lines = lines_of(sweep.cells, raw_records(sweep.folder), reader)
    if not lines:
        raise ConfigError(_nothing(question, sweep, reader))
    found = _document(question, f"{sweep.folder.name}: {question.name}", labels, lines)
    if asked.out is not None:
        write_as_named(asked.out, {name: text(found) for name, text in FORMATS.items()})
    print(terminal(found))
    for warning in sweep.warnings:
        print(plain(f"warning: {warning}"), file=sys.stderr)
    for note in reader.notes:
        print(plain(f"note: {note}"))
    return EXIT_DONE


def _nothing(question: AnalysisSpec, sweep: Sweep, reader: ArtifactReader) -> str:
    reasons = [*sweep.warnings, *reader.notes]
    why = f": {'; '.join(reasons)}" if reasons else ""
    return (
        f"no completed cell of {sweep.folder} has {question.wants} in the store{why}. Run the"
        " command where the sweep's store is, or give the store with --store"
    )


def collect(
    cells: Sequence[CellRecord],
    records: dict[str, Record],
    stage: str,
    tell: Callable[[Record], T | None],
) -> list[tuple[CellRecord, T]]:
    """Calls `tell` with the record of each completed cell that has an output of `stage`.

    Returns each cell with the value that `tell` returned for the cell, except where this value is
    None. Of the cells that share an output, only the first with such a value is returned. Cells
    whose trigger is applied after augmentation are skipped, because their stored images are clean.
    """
    found: dict[str, tuple[CellRecord, T]] = {}
    for cell in cells:
        record, at = records.get(cell.id), _place(cell, stage)
        if (
            not cell.done
            or record is None
            or at is None
            or at in found
            or is_triggered_late(record)
        ):
            continue
        said = tell(record)
        if said is not None:
            found[at] = cell, said
    return list(found.values())


def _place(cell: CellRecord, name: str) -> str | None:
    """Returns the store id of the output of the stage `name`, or None if the cell's record contains
    no id for this stage."""
    stages = cell.run.get("stages")
    entry = stages.get(name) if isinstance(stages, dict) else None
    return str(entry["id"]) if isinstance(entry, dict) and "id" in entry else None


def named(cell: CellRecord) -> defaultdict[str, str]:
    """Maps names to values as text: the choices of a cell, its protocol and its configuration."""
    config = dict(flat(json.loads(cell.config or "{}")))
    config |= {f"protocol.{name}": value for name, value in (cell.protocol or {}).items()}
    values = {name: words(value) for name, value in (config | cell.choices).items()}
    values |= {name: versioned(cell, name) for name in SECTIONS}
    values["ratio"] = ratio_words(cell.choices["ratio"], config.get("protocol.ratio_of"))
    return defaultdict(lambda: words(None), values)


def answer_rows(labels: Sequence[str], found: Sequence[tuple[CellRecord, Any]]) -> list[AnswerRow]:
    """Returns one row for each cell and its statistics in `found`, with the values of the cell's
    `labels`."""
    rows = []
    for cell, statistics in found:
        values = named(cell)
        rows.append(AnswerRow(tuple(values[label] for label in labels), statistics))
    return rows


def _document(
    question: AnalysisSpec, title: str, labels: Sequence[str], lines: Sequence[AnswerRow]
) -> Document:
    """Format the results as a document. In spreadsheets, values are not rounded, and undefined ones
    are empty."""
    names = [field.name for field in fields(question.kind)]
    rows, values = [], []
    for each in lines:
        figures = asdict(each.found).items()
        rows.append([*map(short, each.names), *(question.text(name, v) for name, v in figures)])
        values.append([*each.names, *(v if math.isfinite(v) else None for _, v in figures)])
    heads = [*labels, *(question.heads[name] for name in names)]
    grid = TextTable(title, heads, rows, list(question.notes), len(labels))
    return Document(title, [grid], [*labels, *names], values)


def _parser(question: AnalysisSpec) -> Parser:
    parser = parser_of(question.name, question.asks)
    parser.add_argument("folder", metavar="FOLDER", help="a sweep")
    parser.add_argument(
        "--store", metavar="PATH", type=path_of,
        help=STORE_HELP,
    )  # fmt: skip
    parser.add_argument("--out", type=path_of, metavar="FILE.csv", help=OUT_HELP)
    add_plugin_words(parser)
    return parser
