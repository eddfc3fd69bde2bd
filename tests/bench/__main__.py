"""Runs the benchmarks named on the command line, or all, and writes what they found.

    python -m tests.bench [NAME ...]

Each leaves multirun_reports/bench/NAME.json with its figures, hardware and date.
"""

from __future__ import annotations

import importlib
import json
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

NAMES = ("resume", "spectral", "data")
REPORTS = Path(__file__).parents[2] / "multirun_reports" / "bench"


def main(names: list[str]) -> int:
    """0; 2 for a name that does not exist."""
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        print(f"error: no benchmark {', '.join(unknown)}; known: {', '.join(NAMES)}")
        return 2
    REPORTS.mkdir(parents=True, exist_ok=True)
    for name in names or NAMES:
        rows = importlib.import_module(f"tests.bench.{name}").run()
        found = {"bench": name, "date": datetime.now(UTC).isoformat(timespec="seconds")}
        found |= {"hardware": hardware(), "rows": rows}
        (REPORTS / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
        show(name, rows)
    return 0


def hardware() -> dict[str, Any]:
    """What the figures were measured on."""
    import os

    import torch

    from backdoor_lab.training.machine import machine_of

    trainer = {"accelerator": "auto", "precision": "auto", "channels_last": True, "threads": None,
               "progress": "none", "checkpoint": True, "cells_per_gpu": 1}  # fmt: skip
    return {
        "device": machine_of(trainer).describe(),
        "cores": len(os.sched_getaffinity(0)),
        "load": [round(value, 2) for value in os.getloadavg()],
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def show(name: str, rows: list[dict[str, Any]]) -> None:
    """The figures as an aligned table."""
    columns = list(rows[0])
    cells = [columns] + [[str(row[column]) for column in columns] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    print(f"\n{name}")
    for row in cells:
        print("  " + "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
