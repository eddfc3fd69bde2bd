"""Writes the HTML page of a sweep, `<sweep>/index.html`, which opens from disk and works offline.

Its content security policy allows only the page's own script and style, identified by their hashes,
and embedded images: nothing in a record can run or load anything.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from backdoor_lab.compare.compare_text import Comparison
from backdoor_lab.compare.compare_text import grid as compare_grid
from backdoor_lab.compare.comparison import RANDOM
from backdoor_lab.compare.report import SweepReport
from backdoor_lab.core.small_files import clear_link, write_ours
from backdoor_lab.core.terminal import plain
from backdoor_lab.core.validation import inside
from backdoor_lab.page.page_classes import class_tables
from backdoor_lab.page.page_facts import facts
from backdoor_lab.page.page_pictures import all_pictures
from backdoor_lab.page.page_rows import Column, columns, figure, shared
from backdoor_lab.results.artifact_reader import ArtifactReader, raw_records
from backdoor_lab.results.records import MISSING, CellRecord
from backdoor_lab.results.store_location import find_store
from backdoor_lab.results.sweeps import TABLES, Sweep
from backdoor_lab.tables.markup import TextTable
from backdoor_lab.tables.pivot import PivotTable
from backdoor_lab.tables.text import grids
from backdoor_lab.templates import asset, json_data, render

PAGE = "index.html"
FIGURES = ("nat1", "asr1", "n_poisoned", "nat2", "asr2", "pois_left")
"""The metrics at the top of a cell's details: before the defense, then after it."""
MOST_LINES = 200
MOST_CELLS = 2_000
"""The page of a sweep with more cells has no list of cells: browsers would sort it too slowly, and
its data would exceed BUDGET."""
AS_ABOVE = "Other notes: see the tables above."
BUDGET = 7_000_000
"""The maximum size of the page in bytes. Pictures get the bytes that tables and records leave."""
MATRICES = 8
"""Confusion matrices get at most one part in this many of the bytes that pictures could get."""
SCRIPTS = ("charts.js", "classes.js", "details.js", "table.js")
STYLE = "page.css"


def write_page(
    sweep_folder: Path, store: Path | None = None, report: SweepReport | None = None
) -> Path:
    """Write `<sweep_folder>/index.html` and return its path.

    `store` is the folder of stage outputs, from which pictures are made; if None, `find_store`
    looks for it. If there is no store, the page says that pictures are missing. `report` is created
    from the sweep if None. Raises ConfigError if the file would lie outside the sweep, OSError if
    it cannot be written.
    """
    folder = Path(sweep_folder)
    clear_link(folder / PAGE)
    path = inside(folder, folder / PAGE)
    report = SweepReport.of(folder) if report is None else report
    if len(report.sweep.cells) > MOST_CELLS:
        text = short_page(report)
    else:
        text = page(report, raw_records(folder), ArtifactReader(find_store(folder, store)))
    write_ours(path, text.encode("utf-8", errors="backslashreplace"))
    return path


def page(report: SweepReport, records: dict[str, dict[str, Any]], reader: ArtifactReader) -> str:
    """Render the page as HTML. `records` maps cell ids to records, as `raw_records` returns
    them."""
    cells = report.sweep.cells
    return _filled(
        report, asset(*SCRIPTS), columns(cells), lambda room: _data(cells, records, reader, room)
    )


def short_page(report: SweepReport) -> str:
    """Renders the page of a sweep with more than `MOST_CELLS` cells. The page contains only the
    sweep's settings and tables."""
    return _filled(report, asset(), [], lambda room: json_data({}))


def _filled(
    report: SweepReport, script: str, shown: Sequence[Column], data: Callable[[int], str]
) -> str:
    """Render the page as HTML. `data(n)` returns the data of the cells as JSON of at most about `n`
    bytes."""
    sweep, style = report.sweep, asset(STYLE)
    room = BUDGET - len(script) - len(style)
    return render(
        "sweep.html", sweep=sweep, states=_states(sweep), shared=shared(sweep.cells),
        warnings=[each.replace(str(sweep.folder), sweep.name) for each in sweep.warnings],
        grids=_grids(report.shown), compared=_compared(report.compared), control=RANDOM,
        columns=shown, most=MOST_CELLS, folder=TABLES, policy=_policy(script, style),
        style=style, script=script, data=lambda body: data(room - body),
    )  # fmt: skip


def _policy(script: str, style: str) -> str:
    return (
        f"default-src 'none'; img-src data:; script-src '{_hash(script)}'; "
        f"style-src '{_hash(style)}'; base-uri 'none'; form-action 'none'"
    )


def _states(sweep: Sweep) -> dict[str, int]:
    found = Counter(cell.status.split(":")[0] for cell in sweep.cells)
    return {state: found[state] for state in ("done", "failed", "diverged", MISSING)}


def _grids(tables: Sequence[PivotTable]) -> list[TextTable]:
    """Format the tables in order. Notes that an earlier table already has are omitted."""
    shown: list[TextTable] = []
    seen: set[str] = set()
    for grid in (grid for each in tables for grid in grids(each)):
        fresh = [note for note in grid.notes if note not in seen]
        repeated = [AS_ABOVE] * (len(fresh) < len(grid.notes))
        seen.update(fresh)
        shown.append(replace(grid, notes=[*fresh, *repeated]))
    return shown


def _compared(found: Comparison | None) -> TextTable | None:
    """Format the comparison of the defenses with the control `random`. In a long
    comparison, lines that a summary line covers are omitted. None if `found` is None."""
    if found is not None and (every := len(found.lines)) > MOST_LINES:
        summed = {(line.side, line.measure) for line in found.lines if line.lines}
        lines = [x for x in found.lines if x.lines or (x.side, x.measure) not in summed]
        note = (
            f"{len(lines)} of {every} lines are shown: summaries where there are any. All lines are"
            f" in {TABLES}/compare_{RANDOM}.html next to this page. Holm's correction counts the"
            " tests of all lines."
        )
        found = replace(found, lines=lines, notes=[note, *found.notes])
    return None if found is None else compare_grid(found)


def _data(
    cells: Sequence[CellRecord],
    records: dict[str, dict[str, Any]],
    reader: ArtifactReader,
    room: int,
) -> str:
    """Returns the records and pictures of all cells as JSON of at most roughly `room` bytes."""
    given = [records.get(cell.id, {}) for cell in cells]
    fields = facts(given)
    head = {
        "ids": [plain(cell.id) for cell in cells],
        "status": [plain(cell.status) for cell in cells],
        "common": fields.common, "names": fields.names, "own": fields.own,
        "figures": [[figure(cell, name) for name in FIGURES] for cell in cells],
    }  # fmt: skip
    done = [number for number, cell in enumerate(cells) if cell.done and given[number]]
    left = room - len(json_data(head))
    head["classes"] = class_tables({n: given[n] for n in done}, left // MATRICES)
    pictures = all_pictures(reader, [given[n] for n in done], room - len(json_data(head)))
    shown = dict(zip(map(str, done), pictures, strict=True))
    return json_data(head | {"pictures": shown, "notes": reader.notes})


def _hash(text: str) -> str:
    """The hash of a script or style in the form used by a content security policy."""
    digest = hashlib.sha256(text.encode()).digest()
    return "sha256-" + base64.b64encode(digest).decode()
