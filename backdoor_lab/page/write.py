"""Writes and prints the tables of a sweep.

Only `<sweep>/tables/` and the sweep's page are written, each file atomically.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from backdoor_lab.compare import compare_text
from backdoor_lab.compare.comparison import RANDOM
from backdoor_lab.compare.report import SweepReport
from backdoor_lab.core.atomic_io import write_atomic
from backdoor_lab.core.errors import ConfigError, DataError
from backdoor_lab.core.small_files import clear_link, make_folder, read_json, write_ours
from backdoor_lab.core.validation import NAME, inside
from backdoor_lab.results.sweeps import TABLES, Sweep, read_sweep
from backdoor_lab.tables import overview
from backdoor_lab.tables.layout import PivotSpec, as_json, remembered
from backdoor_lab.tables.pivot import PivotTable, pivot_cells
from backdoor_lab.tables.sheets import csv_of_frame
from backdoor_lab.tables.text import document
from backdoor_lab.tables.writers import FORMATS

LISTING, LAYOUTS = "written.json", "layouts.json"

log = logging.getLogger(__name__)


def write_tables(sweep_dir: Path, failed: Mapping[str, str] | None = None) -> list[PivotTable]:
    """Rebuild `<sweep_dir>/tables/` from the records. Returns the tables in the default layout.

    `failed` is passed to `read_sweep`. Logs a warning for each damaged file. Raises ConfigError if
    `tables` is a link that leads outside the sweep, and OSError if files cannot be written.
    """
    report = SweepReport(read_sweep(Path(sweep_dir), failed))
    for warning in report.sweep.warnings:
        log.warning("%s", warning)
    tables, files = contents(report)
    write_files(report, files)
    return tables


def print_tables(tables: Iterable[PivotTable], file: TextIO | None = None) -> None:
    """Print the tables as aligned text to `file`, by default stdout."""
    for table in tables:
        print(overview.printed(table), file=file or sys.stdout)


def contents(
    report: SweepReport, layout: PivotSpec | None = None
) -> tuple[list[PivotTable], dict[str, str]]:
    """Returns the tables to show and the files to write, a dict from file name to text.

    If `layout` is given, the tables to show have this layout. The files contain the default tables,
    those in `layout` and in all layouts requested earlier, and, if the sweep has the control
    `random`, the comparison of its defenses with this control.
    """
    sweep, shown = report.sweep, report.shown
    asked = [] if layout is None else pivot_cells(sweep.cells, layout)
    before = [each for each in _layouts(sweep) if each != layout]
    others = [table for each in before for table in pivot_cells(sweep.cells, each)]
    written = overview.kept(shown, report.tables)
    written += [each for each in shown if not each.spec.report] + asked + others
    named = {f"{_kind(table)}_{table.slug}": document(table) for table in written}
    if report.compared is not None:
        named[f"compare_{RANDOM}"] = compare_text.document(report.compared)
    files = {
        f"{name}.{suffix}": text(each)
        for name, each in named.items()
        for suffix, text in FORMATS.items()
    }
    files["records.csv"] = csv_of_frame(report.facts.frame)
    if layout is not None or before:
        files[LAYOUTS] = as_json([*before, *([] if layout is None else [layout])])
    return shown if layout is None else [*asked], files


def _kind(table: PivotTable) -> str:
    return "table" if table.spec.report else "wide"


def write_as_named(out: Path, texts: Mapping[str, str]) -> None:
    """Write one of `texts` to `out`. Their keys are suffixes without the dot; the suffix of `out`
    selects the text.

    Raises ConfigError if `texts` lacks this suffix, or if the folder of `out` does not exist.
    """
    text = texts[check_name(out, texts)]
    write_atomic(out, text.encode("utf-8", errors="backslashreplace"))


def check_name(out: Path, suffixes: Iterable[str]) -> str:
    """Returns the suffix of the path `out`, without the dot. Raises ConfigError if the suffix is
    not in `suffixes`, or if the folder that `out` is in does not exist."""
    suffix, known = out.suffix.removeprefix("."), list(suffixes)
    if suffix not in known or not out.parent.is_dir():
        listed = ", ".join(f".{name}" for name in known)
        raise ConfigError(
            f"`--out` must end in one of {listed} and be in an existing folder, got {out}"
        )
    return suffix


def _layouts(sweep: Sweep) -> list[PivotSpec]:
    try:
        entries = read_json(sweep.folder / TABLES / LAYOUTS)
    except (OSError, DataError):
        return []
    return remembered(entries, sweep.cells)


def write_files(report: SweepReport, files: dict[str, str]) -> None:
    """Write `files` into the sweep's tables folder, then write the sweep's page. Tables of the last
    run that are not in `files` are outdated and are removed."""
    from backdoor_lab.page.document import write_page

    sweep = report.sweep.folder
    clear_link(sweep / TABLES)
    folder = inside(sweep, sweep / TABLES)
    make_folder(folder)
    for name in _earlier(folder) - set(files):
        with suppress(IsADirectoryError):
            (folder / name).unlink(missing_ok=True)
    for name, text in {**files, LISTING: json.dumps(sorted(files), indent=0) + "\n"}.items():
        write_ours(folder / name, text.encode("utf-8", errors="backslashreplace"))
    write_page(sweep, report=report)


def _earlier(folder: Path) -> set[str]:
    """The names of the table files that the last run wrote; empty if their list is missing or
    damaged. Names that no run would write are ignored."""
    try:
        names = read_json(folder / LISTING)
    except (OSError, DataError):
        return set()
    names = [n for n in names if isinstance(n, str)] if isinstance(names, list) else []
    suffixes = tuple(f".{suffix}" for suffix in FORMATS)
    return {
        name
        for name in names
        for kind in ("table_", "wide_", "compare_")
        if name.startswith(kind) and name.endswith(suffixes) and _plain(name.removeprefix(kind))
    }


def _plain(name: str) -> bool:
    return NAME.match(name.rpartition(".")[0]) is not None
