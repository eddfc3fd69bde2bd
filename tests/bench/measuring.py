"""Code shared by the benchmarks: figures with targets, timing in turns, and records of results."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from backdoor_lab.core.resources import WAITING

ROOT = Path(__file__).parents[2]
REPORTS = ROOT / "multirun_reports" / "bench"
KEPT = ROOT / "multirun_reports" / ".bench"
"""A folder for files to keep between runs, such as an environment with another package."""
PACKAGES = ("torch", "torchvision", "pytorch-lightning", "hydra-core", "numpy", "scipy", "pandas")
# The smallest possible cell, whose time is almost only overhead.
TINY = (
    "dataset=synthetic", "dataset.size=8", "dataset.per_class_train=20",
    "dataset.per_class_test=5", "model.width=4", "recipe=demo", "recipe.epochs=1", "ratio=0.3",
    "trainer=cpu", "trainer.threads=1", "trainer.progress=none", "logger=none",
)  # fmt: skip


@dataclass(frozen=True)
class Figure:
    """A named number with its target, such as ">= 10" or "<= 0.5". Without a target it is only
    shown."""

    what: str
    value: float
    unit: str = ""
    target: str = ""
    note: str = ""

    @property
    def reached(self) -> bool | None:
        """Whether the value meets the target; None if there is no target."""
        if not self.target:
            return None
        sign, limit = self.target.split()
        return self.value >= float(limit) if sign == ">=" else self.value <= float(limit)

    def shown(self) -> list[str]:
        """The cells of this figure's row in a table."""
        verdict = {None: "", True: "reached", False: "MISSED"}[self.reached]
        return [self.what, f"{brief(self.value)} {self.unit}", self.target, verdict, self.note]


def brief(value: float) -> str:
    """Format a number with three or four significant digits."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def by_turns(
    sides: Mapping[str, Callable[[], float | None]], rounds: int, *, warm: bool = True
) -> dict[str, list[float]]:
    """Time every side once per round, so that disturbances affect all sides alike. A side may
    return its own seconds; otherwise, the whole call is timed. With `warm`, each side is first
    called once without timing."""
    for call in sides.values() if warm else ():
        call()
    found: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        # Every second round has the reverse order, so that no side always follows the same other
        # side.
        order = list(sides.items())[:: 1 if number % 2 == 0 else -1]
        for name, call in order:
            began = time.perf_counter()
            own = call()
            found[name].append(time.perf_counter() - began if own is None else own)
    return found


def ratio(found: dict[str, list[float]], slow: str, fast: str) -> float:
    """How many times faster `fast` is than `slow`, comparing the shortest time of each."""
    return min(found[slow]) / min(found[fast])


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The slope of log(seconds) over log(size): 1 means linear growth."""
    import numpy as np

    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def threads() -> int:
    """The number of threads: OMP_NUM_THREADS or, if not set, the number of cores."""
    return int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))


def command(*arguments: str) -> list[str]:
    """The command line that runs a module with Python. The first argument is the name of the
    module."""
    return [sys.executable, "-m", *arguments]


def timed(
    arguments: Sequence[str], cwd: Path, *, check: bool = True, **environment: str
) -> tuple[float, str]:
    """Run a program. Returns its seconds and its standard output."""
    began = time.perf_counter()
    done = subprocess.run(arguments, cwd=cwd, env=surroundings(**environment), text=True,
                          capture_output=True, check=False)  # fmt: skip
    seconds = time.perf_counter() - began
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(arguments[:6])} ended with {done.returncode}:\n"
                           f"{done.stdout[-500:]}\n{done.stderr[-2000:]}")  # fmt: skip
    return seconds, done.stdout


def surroundings(**changes: str) -> dict[str, str]:
    """Environment variables for a program: it uses this checkout's code, one thread and no GPU.
    Variables that this process has set for itself are not passed on."""
    fixed = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    kept = {name: value for name, value in os.environ.items() if name not in WAITING}
    return {**kept, **fixed, **changes}


def memory(*, peak: bool = False, restart: bool = False) -> float:
    """The memory of this process in MB, now or at its peak. `restart` resets the peak (Linux)."""
    if restart:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text().splitlines()
    key = "VmHWM:" if peak else "VmRSS:"
    return next(int(line.split()[1]) for line in status if line.startswith(key)) * 1024 / 1e6


def hardware() -> dict[str, Any]:
    """The hardware of this machine and its current load."""
    import torch

    from backdoor_lab.training.device import ComputeDevice, machine_of

    trainer = {"accelerator": "auto", "precision": "auto", "channels_last": True,
               "threads": threads(), "progress": "none", "checkpoint": True,
               "cells_per_gpu": 1}  # fmt: skip
    machine: ComputeDevice = machine_of(trainer)
    return {
        "device": machine.describe(),
        "cores": len(os.sched_getaffinity(0)),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "load": [round(value, 2) for value in os.getloadavg()],
        "system": f"{platform.system()} {platform.release()}",
    }


def versions() -> dict[str, str]:
    """The versions of Python and of packages that affect the speed."""
    return {"python": platform.python_version()} | {each: metadata.version(each)
                                                    for each in PACKAGES}  # fmt: skip


def write(name: str, figures: Iterable[Figure], before: dict[str, Any], seconds: float) -> Path:
    """Write multirun_reports/bench/NAME.json. `before` is what `hardware` returned at the start."""
    told = [{**asdict(each), "reached": each.reached} for each in figures]
    found = {
        "bench": name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "hardware": before,
        "load_after": [round(value, 2) for value in os.getloadavg()],
        "versions": versions(),
        "figures": told,
    }
    REPORTS.mkdir(parents=True, exist_ok=True)
    path = REPORTS / f"{name}.json"
    path.write_text(json.dumps(found, indent=1) + "\n")
    return path


def show(name: str, figures: Sequence[Figure]) -> None:
    """Print the figures as aligned lines."""
    rows = [each.shown() for each in figures]
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    print(f"\n{name}")
    for row in rows:
        line = "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True))
        print(f"  {line.rstrip()}", flush=True)
