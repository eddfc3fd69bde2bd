"""Formats the estimate of a sweep as text for the terminal: its cells, time and disk space."""

from __future__ import annotations

import heapq
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from backdoor_lab.core.atomic_io import nearest
from backdoor_lab.core.errors import many
from backdoor_lab.core.resources import cores
from backdoor_lab.core.terminal import duration, plain, size_words
from backdoor_lab.pipeline.cell import Cell
from backdoor_lab.sweep.calibrate import Calibration, Rate, Speed, calibrate
from backdoor_lab.sweep.estimate import Work, estimate
from backdoor_lab.training.device import ComputeDevice

WORTH = 0.9
"""Another setting is recommended if it takes at most this share of the time: two measurements under
the same load differ by a few percent."""


def estimate_text(
    cells: Sequence[Cell],
    finished: set[str],
    machine: ComputeDevice,
    *,
    at_once: int,
    processes: int,
    options: Mapping[str, str] | None = None,
) -> str:
    """Estimate how long a sweep takes with `at_once` cells at a time and how much disk space it
    needs. Returns the estimate as text.

    `options`: the overrides to show next to each cell, by id (see `distinguishing_options`). The
    speed is measured in `processes` parallel processes; if `processes` is 0, in this process.
    """
    work = estimate(cells, finished, machine)
    if work.kinds:
        kinds = many(len(work.kinds), "kind")
        said = (
            f"measuring the speed of this machine: {kinds} of training, up to a minute each, longer"
            " if other programs use its cores ..."
        )
        print(said, file=sys.stderr, flush=True)
    began = time.process_time()
    tried = calibrate(work.kinds, machine, min(processes, len(work.amounts)))
    # Up to here, this process has done what every run does before its first cell.
    return describe(
        work, tried, at_once=max(1, min(at_once, len(work.amounts))), before=began, options=options
    )


def describe(
    work: Work,
    tried: Calibration,
    *,
    at_once: int,
    before: float = 0.0,
    options: Mapping[str, str] | None = None,
) -> str:
    """Describe the remaining work and its total time as text, with a warning if the disk has too
    little space. `before`: the CPU time in seconds that is spent until the first cell starts.
    `options`: see `estimate_text`."""
    names = [cell.id for cell, _ in work.cells]
    columns = [names, [options.get(name, "") for name in names]] if options else [names]
    widths = [max(map(len, column)) for column in columns]
    lines = [
        "  ".join([*(word.ljust(width) for word, width in zip(words, widths, strict=True)), state])
        for *words, state in zip(*columns, (state for _, state in work.cells), strict=True)
    ]
    done = sum(state == "done" for _, state in work.cells)
    cells, trainings = many(len(work.cells), "cell"), many(work.trainings, "training")
    lines.append(f"{cells}, {done} done; {trainings} to do")
    if tried.disturbed:
        lines[-1] += f" ({_how(tried)}; other processes use {tried.others:.1f} of {_cores()}):"
        lines += _under_load(work, tried, at_once, before)
    else:
        takes = _takes(work, tried, at_once, before)
        at = f" with {at_once} cells at a time" * (at_once > 1)
        lines[-1] += f": about {duration(takes.now)}{at} ({_how(tried)})"
    lines += _unforeseen(work)
    if work.bytes:
        root = Path(work.cells[0][0].store_root)
        lines.append(_disk(work.bytes, root, shutil.disk_usage(nearest(root)).free))
    return "\n".join(map(plain, lines))


def _under_load(work: Work, tried: Calibration, at_once: int, before: float) -> list[str]:
    """The lines with the times of a sweep on a machine that other processes also use: those of this
    command and, if it is faster under the same load, that of the command with one thread per cell.
    """
    takes = _takes(work, tried, at_once, before)
    idle, faster = f"about {duration(takes.idle)}", []
    if tried.single is not None:
        single = _takes(work, tried.single, at_once, before)
        # The CPU time of several threads includes the time in which they wait for each other, so
        # the time on an idle machine is unknown: one thread would be the slowest, and threads that
        # never wait the fastest.
        fastest = _takes(work, _sped_up(tried.single, tried), at_once, before)
        idle = _range(fastest.idle, min(single.idle, takes.now))
        if single.now < WORTH * takes.now:
            faster = [f"  faster with this load: trainer.threads=1, about {duration(single.now)}"]
    at = f", {at_once} cells at a time" * (at_once > 1)
    now = f"about {duration(takes.now)} with this load"
    return [f"  this command{at}: {now}, {idle} on an idle machine", *faster]


def _sped_up(single: Calibration, tried: Calibration) -> Calibration:
    """The calibration `single` if the threads of `tried` divided the work without any waiting."""
    factor = _usable(tried) / _usable(single)

    def fast(rate: Rate) -> Rate:
        return replace(rate, idle=rate.idle / factor)

    speeds = {
        kind: Speed(fast(speed.train), fast(speed.measure), fast(speed.extract))
        for kind, speed in single.speeds.items()
    }
    return replace(single, speeds=speeds)


def _usable(tried: Calibration) -> float:
    """The number of cores that each process can use on an idle machine."""
    return min(tried.threads, cores() / tried.processes)


def _range(low: float, high: float) -> str:
    """A range of durations as text: `31 min to 62 min`, or `about 31 min` if both are equal."""
    first, last = duration(min(low, high)), duration(high)
    return f"about {last}" if first == last else f"{first} to {last}"


def _cores() -> str:
    return many(cores(), "core")


def _takes(work: Work, tried: Calibration, at_once: int, before: float) -> Rate:
    """The seconds from the start of the command to the last record. Each free worker takes the next
    cell in order; the time to start the workers is included."""
    costs = [amount.seconds(tried.speeds[kind]) for kind, amount in work.amounts]
    slower = max([cost.now / cost.idle for cost in costs if cost.idle], default=1.0)
    start = Rate(tried.start * slower, tried.start)
    now = before * slower + _last([cost.now for cost in costs], at_once, start.now)
    return Rate(now, before + _last([cost.idle for cost in costs], at_once, start.idle))


def _last(costs: Sequence[float], at_once: int, start: float) -> float:
    """The time at which the last of `at_once` workers finishes, if all begin at `start` and each
    free worker takes the next of `costs` (seconds)."""
    workers = [start if costs else 0.0] * at_once
    for cost in costs:
        heapq.heapreplace(workers, workers[0] + cost)
    return max(workers)


def _how(tried: Calibration) -> str:
    if not tried.speeds:
        return "nothing to compute"
    processes = "one process" if tried.processes == 1 else f"{tried.processes} parallel processes"
    return f"calibrated on this machine with {processes} of {many(tried.threads, 'thread')}"


def _unforeseen(work: Work) -> list[str]:
    """At most one line, which lists the methods whose computations the estimate omits."""
    left = [cell for cell, state in work.cells if state not in ("done", "record only")]
    names = [c.choices["trigger"] for c in left if c.trigger.needs_preparing]
    names += [c.choices["trigger"] for c in left if c.trigger.uses_surrogate]
    names += [c.choices["defense"] for c in left if "context" in c.requires]
    if not names:
        return []
    return [f"not included: the computations of {' and '.join(dict.fromkeys(names))}"]


def _disk(needed: int, root: Path, free: int) -> str:
    said = f"networks and features take {size_words(needed)} in {root}"
    if needed < free:
        return f"{said}, where {size_words(free)} are free"
    return (
        f"warning: {said}, where only {size_words(free)} are free: choose a larger disk"
        " (store.root=PATH), or another layer (penultimate features are the smallest)"
    )
