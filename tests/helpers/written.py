"""Runs every command that writes output about a sweep, on a sweep with hostile texts."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from backdoor_lab import distortion, export, separation, status, visibility
from backdoor_lab.compare import __main__ as compare
from backdoor_lab.reports.__main__ import main as reports
from tests.helpers.records import everything, write_sweep


def hostile(text: str) -> list[dict[str, Any]]:
    """Make records with `text` in every key and every value that may contain text."""
    made = []
    for number, defense in enumerate(("spectral", "random", text)):
        one = everything(id=f"c{number}", target=text, trigger=text, choices={"defense": defense})
        one["choices"] |= dict.fromkeys(("dataset", "model", "recipe", "source"), text)
        one["protocol"] |= {"layer": text, text: text}
        one["config"] = {"recipe": {text: text, "lr": number}, text: number}
        one["notes"] = {text: text}
        one["hashes"] |= {text: text, "data": text}
        one["run"] |= {"command": text, "device": text, "git_commit": text, "started": text}
        one["run"]["versions"] = {text: text}
        one["run"]["seconds"] = {text: 3.0}
        one["top_class1"] = text
        one["applied"] = {text: text}
        made.append(one)
    made.append(everything(id="d", target=text, status=f"failed: {text}") | {"error": text})
    return made


def sweep_of(folder: Path, text: str) -> Path:
    asked = [{"id": each["id"], "choices": each["choices"]} for each in hostile(text)]
    missing = {"id": text, "choices": asked[0]["choices"]}
    return write_sweep(folder / "s", hostile(text), [*asked, missing])


def cells_of(folder: Path) -> list[tuple[str, str]]:
    """The cells of all CSV files in a folder, each with the name of its file."""
    return [
        (path.name, cell)
        for path in sorted(folder.rglob("*.csv"))
        for line in csv.reader(io.StringIO(path.read_bytes().decode().replace("\r", "\n")))
        for cell in line
    ]


def write_everything(folder: Path, sweep: Path) -> None:
    """Run every command that writes a table."""
    assert reports([str(sweep)]) == 0
    assert reports([str(sweep), "rows=trigger", "columns=defense", "values=nat1,asr1"]) == 0
    for ending in ("csv", "parquet"):
        assert export.main([str(sweep), "--out", str(folder / f"e.{ending}")]) == 0
    for ending in ("csv", "md", "tex", "html"):
        out = str(folder / f"c.{ending}")
        assert compare.main([str(sweep), "by=defense", "base=random", "--out", out]) == 0
    assert status.main([str(sweep)]) == 0
    # These commands need artifacts that the sweep has not stored.
    assert distortion.main([str(sweep)]) == 2
    assert separation.main([str(sweep)]) == 2
    assert visibility.main([str(sweep)]) == 2


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
