"""Benchmarks commands that compute nothing, compared to a bare `import pandas`."""

from __future__ import annotations

import functools
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.bench.measuring import TINY, Figure, by_turns, command, surroundings
from tests.bench.resume import finished

ROUNDS = 5
CELLS = 12
DEFENSES = "defense=spectral,random"
SWEEP, OTHER = 2.5, 1.5
"""The seconds allowed for a repeated sweep, and for any other command."""


def run() -> list[Figure]:
    """Measure the seconds of every command in several rounds. Reports the shortest time of each."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        finished(folder, CELLS // 2, DEFENSES)
        (sweep,) = (str(each) for each in (folder / "multirun_reports/runs").iterdir())
        seeds = ",".join(map(str, range(CELLS // 2)))
        lab = functools.partial(command, "backdoor_lab")
        commands = {
            "import pandas": [sys.executable, "-c", "import pandas"],
            f"a finished sweep of {CELLS} cells again": lab("-m", *TINY, f"seed={seeds}", DEFENSES),
            "--help": lab("--help"),
            "status": command("backdoor_lab.status", sweep),
            "tables": command("backdoor_lab.reports", sweep),
            "compare": command("backdoor_lab.compare", sweep, "by=defense", "base=random"),
            "refused: a key": lab("-m", *TINY, "tigger=pixel"),
            "refused: a value": lab("-m", *TINY, "trigger=blended", "trigger.strength_test=2"),
            "refused: a class": lab("-m", *TINY, "target=brid"),
            "refused: no data set": lab("-m", "dataset.download=false"),
            "refused: no archive": lab("-m", "dataset=image_folder", "dataset.root=a.tar.xz"),
        }
        sides: dict[str, Callable[[], float | None]] = {
            what: functools.partial(_seconds, what, arguments, folder)
            for what, arguments in commands.items()
        }
        found = {what: min(seconds) for what, seconds in by_turns(sides, ROUNDS).items()}
    pandas = found.pop("import pandas")
    figures = [Figure("import pandas", pandas, "s")]
    for number, (what, seconds) in enumerate(found.items()):
        note = f"{seconds / pandas:.1f} x import pandas"
        figures.append(Figure(what, seconds, "s", f"<= {OTHER if number else SWEEP}", note))
    return figures


def _seconds(what: str, arguments: list[str], folder: Path) -> float:
    began = time.perf_counter()
    done = subprocess.run(
        arguments, cwd=folder, env=surroundings(), capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - began
    assert done.returncode == (2 if what.startswith("refused") else 0), (what, done.stderr)
    return seconds
