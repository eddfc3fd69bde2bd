"""The end of a sweep: writes its tables and logs which cells are done."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from backdoor_lab.core import shutdown
from backdoor_lab.core.errors import (
    EXIT_DONE,
    EXIT_SOME_FAILED,
    EXIT_STOPPED,
    LabError,
    many,
    reason_of,
)
from backdoor_lab.sweep.manifest import RequestedCell, status_of, sweep_file

log = logging.getLogger(__name__)


def conclude(folder: Path, asked: Sequence[RequestedCell], failed: Mapping[str, str]) -> int:
    """Write and print the tables of the sweep in `folder`, and log each requested cell that is not
    done. Returns the exit code. `failed` maps ids of cells without a record to their status.

    If a stop was requested, this is logged first; cells that have not run are not listed, and the
    tables are printed only if they show a result of this command.
    """
    from backdoor_lab.page.write import print_tables, write_tables

    stopped = shutdown.requested()
    if stopped:
        log.warning("stopped on request; the same command resumes where this one stopped")
    states = [status_of(folder / each.id) or failed.get(each.id) for each in asked]
    done = sum(state == "done" for state in states)
    written, shown = True, bool(done) or not stopped
    try:
        tables = write_tables(folder, failed)
        if shown:
            print_tables(tables)
    except (OSError, LabError) as error:
        log.error("the tables of %s cannot be written: %s", folder, reason_of(error))
        written = shown = False
    for each, state in zip(asked, states, strict=True):
        if state != "done" and (state or not stopped):
            log.error("%s: %s", each.id, state or "missing")
    where = f": {folder / 'tables'}" if shown else ""
    earlier = len(sweep_file(folder).get("asked", asked)) - len(asked)
    more = f"; in this folder: {many(earlier, 'earlier cell')}, too" if earlier and shown else ""
    log.warning("%d of %s done%s%s", done, many(len(asked), "cell"), where, more)
    if shown:
        log.warning("open %s", folder / "index.html")
    if stopped:
        return EXIT_STOPPED
    return EXIT_DONE if done == len(asked) and written else EXIT_SOME_FAILED
