"""Draws the pictures of the documents into multirun_reports/pictures.

    python -m tests.pictures [NAME ...] [--sweep FOLDER] [--store PATH] [--out FOLDER]

NAME: `triggers` (every trigger on two photographs; trains small networks for some of them),
`overview` (from committed records), `sweep` (a sweep's page and its sheet of figures, from the
demo's records and store; needs a Chromium).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from tests.pictures import overview, sweep, triggers

REPORTS = Path(__file__).parents[2] / "multirun_reports"
PICTURES: dict[str, Callable[[argparse.Namespace], dict[str, bytes]]] = {
    "triggers": lambda given: {"triggers.png": triggers.drawn()},
    "overview": lambda given: {"overview.png": overview.drawn()},
    "sweep": lambda given: sweep.drawn(given.sweep, given.store),
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command. Returns 0, or 1 if there is no browser or the store lacks what a picture
    shows."""
    parser = argparse.ArgumentParser(prog="python -m tests.pictures", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*PICTURES, []], metavar="NAME")
    parser.add_argument("--sweep", type=Path, default=REPORTS / "runs" / "demo")
    parser.add_argument("--store", type=Path)
    parser.add_argument("--out", type=Path, default=REPORTS / "pictures")
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    for name in given.names or PICTURES:
        found = PICTURES[name](given)
        if not found:
            return 1
        for file, data in found.items():
            (given.out / file).write_bytes(data)
            print(f"{given.out / file}: {len(data):,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
