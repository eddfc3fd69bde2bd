"""Runs the benchmarks named on the command line or, without names, all that take a minute or two.

    python -m tests.bench [NAME ...]

Each benchmark prints its figures with their targets, and writes them to
multirun_reports/bench/NAME.json with the hardware, its load, the versions and the date.
"""

from __future__ import annotations

import importlib
import sys
import time

from backdoor_lab.core.resources import wait_briefly
from tests.bench.measuring import Figure, hardware, show, write

NAMES = (
    "step", "networks", "data", "spectral", "cells", "overhead", "growth", "resume", "quick",
    "page", "scan",
)  # fmt: skip
ON_REQUEST = ("demo", "large")


def main(names: list[str]) -> int:
    """Run the benchmarks. Returns 1 if a target was missed, 2 for an unknown name, otherwise 0."""
    known = [*NAMES, *ON_REQUEST]
    unknown = sorted(set(names) - set(known))
    if unknown:
        print(f"error: no benchmark {', '.join(unknown)}; known: {', '.join(known)}")
        return 2
    figures = [each for name in names or NAMES for each in _bench(name)]
    missed = [each.what for each in figures if each.reached is False]
    print(f"\n{sum(each.reached is True for each in figures)} targets reached,"
          f" {len(missed)} missed{': ' + '; '.join(missed) if missed else ''}")  # fmt: skip
    return 1 if missed else 0


def _bench(name: str) -> list[Figure]:
    before, began = hardware(), time.perf_counter()
    figures: list[Figure] = importlib.import_module(f"tests.bench.{name}").run()
    write(name, figures, before, time.perf_counter() - began)
    show(f"{name} (load {before['load'][0]} before)", figures)
    return figures


if __name__ == "__main__":
    # Exit in the same way as the package's entry point.
    wait_briefly()
    sys.exit(main(sys.argv[1:]))
