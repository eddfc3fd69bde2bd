"""python -m backdoor_lab.status [FOLDER ...]: which cells are done, running, failed or missing.

Only reads files. A cell counts as running while its heartbeat is recent according to this machine's
clock.
"""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from backdoor_lab.core.errors import EXIT_DONE, DataError
from backdoor_lab.core.options import parser_of, path_of
from backdoor_lab.core.terminal import duration, plain, run_command
from backdoor_lab.core.validation import LONGEST, non_negative
from backdoor_lab.results.facts import SEED, CellFields, head
from backdoor_lab.results.heartbeat import HEARTBEAT, read_heartbeat
from backdoor_lab.results.records import MISSING, CellRecord
from backdoor_lab.results.store_location import DEFAULT_SAID, roots_of
from backdoor_lab.results.sweeps import Sweep, find_sweeps, read_sweep
from backdoor_lab.tables.layout import ROW

KINDS = ("done", "running", "stale", "failed", "diverged", MISSING)


@dataclass(frozen=True)
class State:
    """The state of a cell: `kind` is one of KINDS; `text` gives details and may be empty."""

    cell: CellRecord
    kind: str
    text: str = ""


def look(sweep: Sweep, now: float) -> list[State]:
    """The state of every cell. `now` is in seconds since 1970.

    A recent heartbeat overrides a record of failure, because the cell is being run again. The
    record of a completed cell overrides any heartbeat.
    """
    beats = {
        path.parent.name: path
        for path in sorted(sweep.folder.glob(f"*/{HEARTBEAT}"))
        if not path.parent.name.startswith(".")
    }
    known = {cell.id for cell in sweep.cells}
    unlisted = [CellRecord(name, MISSING) for name in beats if name not in known]
    return [_state(cell, beats.get(cell.id), now) for cell in sweep.cells + unlisted]


def _state(cell: CellRecord, path: Path | None, now: float) -> State:
    kind = cell.status.split(":")[0]
    beat = None if cell.done or path is None else _heartbeat(cell, path, now)
    if beat is not None and (beat.kind == "running" or kind == MISSING):
        return beat
    return State(cell, kind, "" if kind in ("done", MISSING) else cell.status)


def _heartbeat(cell: CellRecord, path: Path, now: float) -> State | None:
    try:
        beat = read_heartbeat(path, now)
    except DataError as error:
        return State(cell, "stale", str(error))
    if beat is None:
        return None
    text = f"{beat.doing} ({beat.where})"
    if not beat.stale:
        return State(cell, "running", text)
    return State(cell, "stale", f"{text}; no heartbeat for {duration(beat.age)}")


def seconds_left(states: list[State]) -> float | None:
    """Roughly estimate the seconds until all cells are done. None if cells remain, but no completed
    cell has computed stages.

    Assumes that every remaining cell takes the mean time of the completed cells that computed
    stages, and that the number of cells running in parallel stays the same.
    """
    costs = [cost for s in states if s.kind == "done" if (cost := _cost(s.cell)) > 0]
    open_cells = sum(state.kind != "done" for state in states)
    if not costs:
        return None if open_cells else 0.0
    at_once = max(1, sum(state.kind == "running" for state in states))
    return sum(costs) / len(costs) * open_cells / at_once


def _cost(cell: CellRecord) -> float:
    """The seconds spent on stages that this cell computed rather than read from the store."""
    stages, seconds = cell.run.get("stages"), cell.run.get("seconds")
    if not isinstance(stages, dict) or not isinstance(seconds, dict):
        return 0.0
    made = {n for n, s in stages.items() if isinstance(s, dict) and s.get("made") is True}
    return sum(non_negative(seconds.get(name), high=LONGEST) or 0.0 for name in made)


def show(sweep: Sweep, states: list[State]) -> str:
    """Format a sweep as text: one line per table row, with the cells of that row; details of the
    cells that are not done; and counts."""
    counts = Counter(state.kind for state in states)
    lines = [f"{sweep.name} in {sweep.folder}", "", *_grid(states), ""]
    lines += [f"{s.kind}: {s.cell.id}: {s.text}" for s in states if s.text]
    lines += [f"warning: {warning}" for warning in sweep.warnings]
    counted = ", ".join(f"{counts[kind]} {kind}" for kind in KINDS if counts[kind])
    noun = "cell" if len(states) == 1 else "cells"
    lines.append(f"{len(states)} {noun}: {counted or 'none'}")
    left = seconds_left(states)
    if left is None:
        lines.append("Time left: unknown until a cell has computed its stages.")
    elif left > 0:
        lines.append(
            f"Time left: about {duration(left)}, if the remaining cells take as long as the done"
            " ones on average."
        )
    return "\n".join(plain(line) for line in lines)


def _grid(states: list[State]) -> list[str]:
    """Format one line per table row: the values that identify the row, and its cells by state. A
    cell whose choices are unknown has its own line."""
    facts = CellFields([state.cell for state in states])
    names = _differing(facts)
    rows: dict[tuple[str, ...], list[int]] = {}
    for number, state in enumerate(states):
        key = facts.key(number, names) if state.cell.choices else (state.cell.id,)
        rows.setdefault(key, []).append(number)
    lines = [[*map(head, names), "Cells"]]
    lines += [[*key, _cells(facts, states, at)] for key, at in rows.items() if len(key) > 1]
    widths = [max(map(len, column)) for column in list(zip(*lines, strict=True))[:-1]]
    table = ["  ".join([*map(str.ljust, line, widths), line[-1]]) for line in lines]
    lost = [f"{key[0]}  {states[at[0]].kind}" for key, at in rows.items() if len(key) == 1]
    return [*(table if len(lines) > 1 else []), *lost]


def _cells(facts: CellFields, states: list[State], numbers: list[int]) -> str:
    """List cells by state: ``done: seed 0, 2; running: seed 1``. Two cells with the same seed are
    listed by id."""
    seeds = Counter(facts.word(number, SEED) for number in numbers)
    kinds: dict[str, list[str]] = {}
    for number in numbers:
        seed = facts.word(number, SEED)
        name = f"seed {seed}" if seeds[seed] == 1 else states[number].cell.id
        kinds.setdefault(states[number].kind, []).append(name)
    return "; ".join(f"{kind}: {_enumerated(kinds[kind])}" for kind in KINDS if kind in kinds)


def _enumerated(names: list[str]) -> str:
    return ", ".join([names[0], *(name.removeprefix("seed ") for name in names[1:])])


def _differing(facts: CellFields) -> list[str]:
    """The names that identify a line: trigger, the choices of a table row, and everything else that
    differs between the cells, except the seed."""
    others = [name for name in facts.names if name not in ("trigger", SEED, *ROW)]
    return ["trigger", *ROW, *(name for name in others if len(facts.values(name)) > 1)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Exit codes: 0 whatever the state of the sweeps, 2 if a folder does not
    exist."""
    parser = parser_of("status", __doc__)
    parser.add_argument(
        "folders", metavar="FOLDER", nargs="*", type=path_of,
        help=f"a sweep, or a folder of sweeps (default: {DEFAULT_SAID})",
    )  # fmt: skip
    return run_command(parser, _show_all, arguments)


def _show_all(given: Namespace) -> int:
    roots = roots_of(given.folders)
    found = dict.fromkeys(sweep for root in roots for sweep in find_sweeps(root))
    if not found:
        print(plain(f"No sweep found in {', '.join(map(str, roots))}."))
    for each in found:
        sweep = read_sweep(each)
        print(show(sweep, look(sweep, time.time())), end="\n\n")
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
