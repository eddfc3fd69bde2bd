"""python -m backdoor_lab.results freeze SWEEP_DIR [--out DIR] [--keep-curve]
python -m backdoor_lab.results index ROOT [--write]

`freeze` writes a finished sweep as three files (sweep.json, records.jsonl, tables.md) to DIR, by
default next to the cell folders. All commands read these files instead of the cell folders. `index`
prints a table of the frozen sweeps under ROOT: question, document, sweeps, cells, hours, dates.
With --write, the table also replaces the one in ROOT/README.md.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from backdoor_lab.compare.report import SweepReport
from backdoor_lab.core.atomic_io import write_atomic
from backdoor_lab.core.errors import EXIT_DONE, DataError, many
from backdoor_lab.core.options import parser_of, path_of
from backdoor_lab.core.terminal import plain, run_command
from backdoor_lab.results import frozen
from backdoor_lab.results.artifact_reader import raw_records
from backdoor_lab.results.index import index, rewrite
from backdoor_lab.results.sweeps import one_sweep
from backdoor_lab.tables.overview import markdown


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Exit codes: 0 done, 2 if there is no sweep or a record is damaged."""
    parser = parser_of("results", __doc__)
    commands = parser.add_subparsers(required=True)
    freeze_ = commands.add_parser("freeze", help="write a finished sweep as three files")
    freeze_.add_argument("folder", metavar="SWEEP_DIR", type=path_of)
    freeze_.add_argument("--out", type=path_of, help="default: SWEEP_DIR itself")
    freeze_.add_argument(
        "--keep-curve", action="store_true", help="keep the removal curves in the records"
    )
    index_ = commands.add_parser("index", help="print a table of the frozen sweeps")
    index_.add_argument("folder", metavar="ROOT", type=path_of)
    index_.add_argument("--write", action="store_true", help="replace the table in ROOT/README.md")
    freeze_.set_defaults(work=_freeze)
    index_.set_defaults(work=_index)
    return run_command(parser, lambda given: given.work(given), arguments)


def _index(given: Namespace) -> int:
    if given.write:
        rewrite(given.folder)
    for line in index(given.folder).splitlines():
        print(plain(line))
    return EXIT_DONE


def _freeze(given: Namespace) -> int:
    out = given.out or given.folder
    count = freeze(given.folder, out, keep_curve=given.keep_curve)
    print(plain(f"{many(count, 'record')} in {out / frozen.RECORDS}"))
    return EXIT_DONE


def freeze(folder: Path, out: Path, *, keep_curve: bool = False) -> int:
    """Write the three files of the sweep in `folder` to `out`; return the number of records.

    Raises ConfigError if `folder` is not a sweep, DataError if a record is damaged.
    """
    report = SweepReport(one_sweep(str(folder)))
    sweep = report.sweep
    if sweep.warnings:
        raise DataError(f"{folder}: {'; '.join(sweep.warnings[:3])}")
    found = raw_records(sweep.folder, whole=True)
    records = [
        frozen.frozen_record(found[cell.id], keep_curve=keep_curve)
        for cell in sweep.cells
        if cell.status != "missing"
    ]
    asked = [{"id": cell.id, "choices": cell.choices} for cell in sweep.cells]
    lines = frozen.lines_of(records)
    content = frozen.description(sweep.name, sweep.command, asked, records, lines)
    out.mkdir(parents=True, exist_ok=True)
    for name, text in (
        (frozen.RECORDS, lines),
        (frozen.SWEEP, frozen.readable(content)),
        (frozen.TABLES, tables_text(report)),
    ):
        write_atomic(out / name, text.encode("utf-8", errors="backslashreplace"))
    return len(records)


def tables_text(report: SweepReport) -> str:
    """Returns the content of tables.md."""
    tables = frozen.without_outside_paths("\n".join(map(markdown, report.shown)))
    return f"# {report.sweep.name}\n\n{tables}"


if __name__ == "__main__":
    sys.exit(main())
