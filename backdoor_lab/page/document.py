"""One page per sweep, `<sweep>/index.html`: opens from disk, and asks nothing of any network.

The page carries a content policy that names its one script and its one style by their hashes and
allows images out of the page alone: whatever a record says, nothing in it runs or loads.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from string import Template
from typing import Any

from backdoor_lab.compare.compare_text import Comparison
from backdoor_lab.compare.compare_text import grid as compare_grid
from backdoor_lab.compare.comparison import RANDOM
from backdoor_lab.compare.report import Report
from backdoor_lab.core.checks import inside
from backdoor_lab.core.errors import many
from backdoor_lab.core.small_files import clear_link, write_ours
from backdoor_lab.core.terminal import plain
from backdoor_lab.page.page_facts import facts
from backdoor_lab.page.page_pictures import all_pictures
from backdoor_lab.page.page_rows import columns, figure, filters, shared, table
from backdoor_lab.results.records import MISSING, Cell
from backdoor_lab.results.stored import Shelf, raw_records
from backdoor_lab.results.sweeps import TABLES, Sweep
from backdoor_lab.results.whereabouts import find_store
from backdoor_lab.tables.markup import Grid, in_html
from backdoor_lab.tables.overview import Shown, grids

PAGE = "index.html"
FIGURES = ("nat1", "asr1", "n_poisoned", "nat2", "asr2", "pois_left")
"""What stands on top of a cell's details: before the defense, then after it."""
MOST_LINES = 200
MOST_CELLS = 2_000
"""More cells than that are not listed one by one: no browser sorts them at once, and what is said
of each would take more than BUDGET."""
AS_ABOVE = "Else as said below the tables before."
BUDGET = 7_000_000
"""Bytes; what the tables and the facts leave of it goes to the pictures."""
ASSETS = Path(__file__).with_name("assets")
SCRIPTS = ("charts.js", "details.js", "table.js")
STYLE = "page.css"


def write_page(sweep_folder: Path, store: Path | None = None, report: Report | None = None) -> Path:
    """Writes `<sweep_folder>/index.html` from the records, and returns its path.

    `store` is where the stages' outputs lie, for pictures; that of `find_store` if None. Without
    one the page says that pictures are left out. `report` spares the tables a second reading where
    there is one already. Raises ConfigError if the file would lie outside the sweep, OSError if it
    cannot be written.
    """
    folder = Path(sweep_folder)
    clear_link(folder / PAGE)
    path = inside(folder, folder / PAGE)
    report = Report.of(folder) if report is None else report
    if len(report.sweep.cells) > MOST_CELLS:
        text = short_page(report)
    else:
        text = page(report, raw_records(folder), Shelf(find_store(folder, store)))
    write_ours(path, text.encode("utf-8", errors="backslashreplace"))
    return path


def page(report: Report, records: dict[str, dict[str, Any]], shelf: Shelf) -> str:
    """The whole page as text. `records` by cell id, as `raw_records` reads them."""
    cells = report.sweep.cells
    body = _above(report) + _cells(cells)
    script = "(() => {\n" + "\n".join(_asset(name) for name in SCRIPTS) + "})();\n"
    room = BUDGET - len(body) - len(script) - len(_asset(STYLE))
    return _filled(report.sweep, body, _data(cells, records, shelf, room), script)


def short_page(report: Report) -> str:
    """The page of a sweep with more than MOST_CELLS cells: what was run and its tables."""
    cells = many(len(report.sweep.cells), "cell")
    said = (
        f'<section id="all"><h2>All cells</h2>\n<p>{cells} are too many'
        f" for one page, which lists {MOST_CELLS} at most. <code>{TABLES}/records.csv</code> beside"
        " it has a line for each; a smaller sweep has a page with all of its cells.</p></section>\n"
    )
    return _filled(report.sweep, _above(report) + said, "{}", "")


def _above(report: Report) -> str:
    return _summary(report.sweep) + _tables(report.shown) + _compared(report.compared)


def _filled(sweep: Sweep, body: str, data: str, script: str) -> str:
    style = _asset(STYLE)
    return Template(_asset("page.html")).substitute(
        title=html.escape(plain(sweep.name)),
        policy=f"default-src 'none'; img-src data:; script-src '{_hash(script)}'; "
        f"style-src '{_hash(style)}'; base-uri 'none'; form-action 'none'",
        style=style, body=body, data=data, script=script,
    )  # fmt: skip


def _summary(sweep: Sweep) -> str:
    states = Counter(cell.status.split(":")[0] for cell in sweep.cells)
    states = Counter({kind: states[kind] for kind in ("done", "failed", "diverged", MISSING)})
    counts = "".join(
        f'<li data-state="{kind}"><b>{n}</b> {kind}</li>' for kind, n in states.items() if n
    )
    same = "".join(
        f"<div><dt>{html.escape(plain(name))}</dt><dd>{html.escape(value)}</dd></div>"
        for name, value in shared(sweep.cells).items()
    )
    place = str(sweep.folder)
    told = "".join(
        f"<li>{html.escape(plain(each.replace(place, sweep.name)))}</li>" for each in sweep.warnings
    )
    command = f"<pre>{html.escape(plain(sweep.command))}</pre>" if sweep.command else ""
    warnings = f"<h3>Warnings</h3><ul>{told}</ul>" if told else ""
    return (
        f'<section id="summary"><h2>What was run</h2><ul class="states">'
        f"<li><b>{len(sweep.cells)}</b> cells</li>{counts}</ul>{command}"
        f'<dl class="facts">{same}</dl>{warnings}</section>\n'
    )


def _tables(tables: Sequence[Shown]) -> str:
    """The tables one below the other; what is said below one is not said again."""
    shown: list[Grid] = []
    seen: set[str] = set()
    for grid in (grid for each in tables for grid in grids(each)):
        fresh = [note for note in grid.notes if note not in seen]
        repeated = [AS_ABOVE] * (len(fresh) < len(grid.notes))
        seen.update(fresh)
        shown.append(replace(grid, notes=[*fresh, *repeated]))
    parts = "\n".join(f'<div class="report">{in_html(grid)}</div>' for grid in shown)
    return f'<section id="tables"><h2>Tables</h2>\n{parts}</section>\n'


def _compared(found: Comparison | None) -> str:
    """The defenses against the control `random`, folded up; of a long comparison the lines that
    sum up the others."""
    if found is None:
        return ""
    every = len(found.lines)
    if every > MOST_LINES:
        summed = {(line.side, line.measure) for line in found.lines if line.lines}
        lines = [x for x in found.lines if x.lines or (x.side, x.measure) not in summed]
        left = f"{len(lines)} of {every} lines, those over several attacks; all of them stand in "
        note = f"{left}{TABLES}/compare_{RANDOM}.html beside this page."
        found = replace(found, lines=lines, notes=[note, *found.notes])
    return (
        f'<details id="compared"><summary>Every defense against {RANDOM}, in pairs</summary>'
        f'<div class="report">{in_html(compare_grid(found))}</div></details>\n'
    )


def _cells(cells: Sequence[Cell]) -> str:
    shown = columns(cells)
    return (
        '<section id="all"><h2>All cells</h2>\n<form id="filters" hidden>'
        '<span><label for="words">Search</label>'
        '<input type="search" id="words" autocomplete="off"></span>\n'
        f'{filters(shown)}\n<button type="reset">Reset</button></form>\n'
        '<p id="count" role="status"></p>\n'
        f'<div class="scroll" role="region" aria-label="All cells" tabindex="0">'
        f"{table(cells, shown)}</div></section>\n"
    )


def _data(
    cells: Sequence[Cell], records: dict[str, dict[str, Any]], shelf: Shelf, room: int
) -> str:
    """Facts and pictures of every cell as JSON that ends no script element."""
    given = [records.get(cell.id, {}) for cell in cells]
    told = facts(given)
    head = {
        "ids": [plain(cell.id) for cell in cells],
        "status": [plain(cell.status) for cell in cells],
        "common": told.common, "names": told.names, "own": told.own,
        "figures": [[figure(cell, name) for name in FIGURES] for cell in cells],
    }  # fmt: skip
    done = [number for number, cell in enumerate(cells) if cell.done and given[number]]
    pictures = all_pictures(shelf, [given[n] for n in done], room - len(_json(head)))
    shown = dict(zip(map(str, done), pictures, strict=True))
    return _json(head | {"pictures": shown, "notes": shelf.notes})


def _json(value: Any) -> str:
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """How a content policy names a script or a style: what stands between its tags."""
    digest = hashlib.sha256(text.encode()).digest()
    return "sha256-" + base64.b64encode(digest).decode()
