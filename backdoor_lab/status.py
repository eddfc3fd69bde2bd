"""python -m backdoor_lab.status SWEEP_DIR: what of a sweep is done, running, failed and missing.

Reads files only and decides nothing: a heartbeat's age is the wall clock's, and only shown.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backdoor_lab.errors import EXIT_BAD_CONFIG, EXIT_DONE
from backdoor_lab.reports.layout import ROW, words
from backdoor_lab.reports.options import path_of
from backdoor_lab.reports.records import MISSING, Cell
from backdoor_lab.reports.render import plain
from backdoor_lab.reports.sweeps import Sweep, find_sweeps, read_sweep
from backdoor_lab.reports.terminal import duration, printing

HEARTBEAT = "running.json"
STALE_AFTER = 60.0
MARKS = {"done": "D", "running": "R", "stale": "S", "failed": "F", "diverged": "X", MISSING: "."}


@dataclass(frozen=True)
class State:
    """One cell now: `kind` is a key of MARKS, `text` says more where there is more to say."""

    cell: Cell
    kind: str
    text: str = ""


def look(sweep: Sweep, now: float) -> list[State]:
    """The state of every cell; `now` in seconds since 1970. A fresh heartbeat outranks a failed
    record (the cell is being repeated), a done record outranks any heartbeat."""
    beats = {
        path.parent.name: path
        for path in sorted(sweep.folder.glob(f"*/{HEARTBEAT}"))
        if not path.parent.name.startswith(".")
    }
    known = {cell.id for cell in sweep.cells}
    unlisted = [Cell(name, MISSING) for name in beats if name not in known]
    return [_state(cell, beats.get(cell.id), now) for cell in sweep.cells + unlisted]


def _state(cell: Cell, path: Path | None, now: float) -> State:
    kind = cell.status.split(":")[0]
    beat = None if cell.done or path is None else _heartbeat(cell, path, now)
    if beat is not None and (beat.kind == "running" or kind == MISSING):
        return beat
    return State(cell, kind, "" if kind in ("done", MISSING) else cell.status)


def _heartbeat(cell: Cell, path: Path, now: float) -> State | None:
    try:
        age = max(0.0, now - path.stat().st_mtime)
        beat = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError):
        return State(cell, "stale", "heartbeat unreadable")
    text = _progress(beat if isinstance(beat, dict) else {})
    if age <= STALE_AFTER:
        return State(cell, "running", text)
    return State(cell, "stale", f"{text}; no heartbeat for {duration(age)}")


def _progress(beat: dict[str, Any]) -> str:
    text = str(beat.get("stage", "unknown stage"))
    if "epoch" in beat:
        text += f", epoch {beat['epoch']} of {beat.get('epochs', '?')}"
    return f"{text} (pid {beat.get('pid', '?')} on {beat.get('host', '?')})"


def seconds_left(states: list[State]) -> float | None:
    """A rough estimate: the cells that the same command would still run (without a record, or
    failed), times the mean seconds of the done cells that computed stages themselves, over the
    number running. None while no cell can tell."""
    costs = [cost for s in states if s.kind == "done" if (cost := _cost(s.cell)) > 0]
    open_cells = sum(state.kind != "done" for state in states)
    if not costs:
        return None if open_cells else 0.0
    at_once = max(1, sum(state.kind == "running" for state in states))
    return sum(costs) / len(costs) * open_cells / at_once


def _cost(cell: Cell) -> float:
    """Seconds of the stages this cell computed; those it found in the store cost nothing."""
    stages, seconds = cell.run.get("stages"), cell.run.get("seconds")
    if not isinstance(stages, dict) or not isinstance(seconds, dict):
        return 0.0
    made = {n for n, s in stages.items() if isinstance(s, dict) and s.get("made") is True}
    spent = [seconds.get(name) for name in made]
    return float(sum(s for s in spent if isinstance(s, (int, float)) and 0 <= s < 1e9))


def show(sweep: Sweep, states: list[State]) -> str:
    """The grid (a line per row of the tables, a mark per cell), what is not done, the counts."""
    counts = Counter(state.kind for state in states)
    lines = [f"{sweep.name} in {sweep.folder}", "", *_grid(states), ""]
    lines += [f"{s.kind}: {s.cell.id}: {s.text}" for s in states if s.text]
    lines += [f"warning: {warning}" for warning in sweep.warnings]
    told = ", ".join(f"{counts[kind]} {kind}" for kind in MARKS if counts[kind])
    lines.append(f"{len(states)} cells: {told or 'none'}")
    left = seconds_left(states)
    if left is None:
        lines.append("Time left: not known before a cell has computed its stages.")
    elif left > 0:
        lines.append(
            f"Time left: about {duration(left)}, if the cells to come cost what the done ones did"
            " on average."
        )
    return "\n".join(plain(line) for line in lines)


def _grid(states: list[State]) -> list[str]:
    """Rows in the order of the sweep; the marks of a row are its seeds and
    whatever else differs that is no choice."""
    rows: dict[tuple[str, ...], str] = {}
    names = _differing([state.cell for state in states])
    for state in states:
        chosen = state.cell.choices
        key = tuple(words(chosen.get(n)) for n in names) if chosen else (state.cell.id,)
        rows[key] = rows.get(key, "") + MARKS[state.kind]
    heads = {tuple(names): "one mark per cell", **rows}
    columns = range(len(names))
    widths = [max([len(key[c]) for key in heads if len(key) == len(names)]) for c in columns]
    legend = ", ".join(f"{mark} {kind}" for kind, mark in MARKS.items())
    lines = ["  ".join([*map(str.ljust, key, widths), marks]) for key, marks in heads.items()
             if len(key) == len(names)]  # fmt: skip
    return [*lines, *(f"{k[0]}  {m}" for k, m in heads.items() if len(k) != len(names)), legend]


def _differing(cells: list[Cell]) -> list[str]:
    """The trigger, the row's choices, and any other choice that differs in this sweep."""
    known = [cell.choices for cell in cells if cell.choices]
    others = sorted({name for choices in known for name in choices} - {"trigger", "seed", *ROW})
    varied = [n for n in others if len({words(choices.get(n)) for choices in known}) > 1]
    return ["trigger", *ROW, *varied]


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 whatever the state of the sweep; 2 if there is no such folder."""
    parser = argparse.ArgumentParser(prog="python -m backdoor_lab.status", description=__doc__)
    parser.add_argument("folder", metavar="SWEEP_DIR", type=path_of)
    folder = parser.parse_args(arguments).folder
    return printing(lambda: _show_all(folder))


def _show_all(folder: Path) -> int:
    if not folder.is_dir():
        print(plain(f"error: no such folder: {folder}"), file=sys.stderr)
        return EXIT_BAD_CONFIG
    for found in find_sweeps(folder) or [folder]:
        sweep = read_sweep(found)
        print(show(sweep, look(sweep, time.time())), end="\n\n")
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
