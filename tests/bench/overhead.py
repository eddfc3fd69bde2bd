"""Benchmarks the overhead: the cost per cell of a sweep, and commands that must be fast."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any

from backdoor_lab.core.atomic_io import digest, readable
from backdoor_lab.results.frozen import frozen_lines
from backdoor_lab.results.seal import sealed
from tests.bench.cells import records
from tests.bench.measuring import ROOT, TINY, Figure, by_turns, command, timed
from tests.bench.resume import finished

MANY = 10_000
LEAST = """
import gc, json, pathlib, sys
gc.disable()
import pandas
sweep = pathlib.Path(sys.argv[1])
texts = (each.read_bytes() for each in sweep.glob("*/record.json"))
if (sweep / "records.jsonl").exists():
    texts = (sweep / "records.jsonl").read_bytes().splitlines()
kept = [json.loads(text) for text in texts]
"""


def run() -> list[Figure]:
    """Measure the overhead of a cell, --help and reports (both without torch), and tables of 10,000
    records."""
    return [*_per_cell(), *_commands(), *_tables()]


def _per_cell() -> list[Figure]:
    """Measure the time per cell from two sweeps that differ only in their number of cells. Each
    runs in one process."""
    few, many = 2, 12
    with tempfile.TemporaryDirectory() as folder:
        # The untimed first calls also fill the disk cache for both sweeps.
        drawn = count(1000)
        sides = {str(n): partial(_sweep, Path(folder), n, drawn) for n in (few, many)}
        walls = by_turns(sides, rounds=3)
        runs = [records(path) for path in Path(folder).glob("multirun_reports/runs/*")]
    stages = min(sum(sum(each["run"]["seconds"].values()) for each in found) / many
                 for found in runs if len(found) == many)  # fmt: skip
    cell = (min(walls[str(many)]) - min(walls[str(few)])) / (many - few)
    return [
        Figure("a tiny cell in a process of many", cell, "s", note="the best of three sweeps"),
        Figure("its stages", stages, "s", note="data set, networks, features, measuring"),
        Figure("a cell beyond its stages", cell - stages, "s", "<= 0.5"),
    ]


def _sweep(folder: Path, cells: int, drawn: Iterator[int]) -> float:
    # Each sweep has its own seeds, so that it cannot reuse a stage of the other one.
    seeds = ",".join(str(seed) for seed in islice(drawn, cells))
    asked = [*command("backdoor_lab"), "-m", *TINY, f"seed={seeds}", "hydra/launcher=basic"]
    return timed(asked, folder)[0]


def _commands() -> list[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        finished(Path(folder), 12)
        asked = {
            "--help": ["backdoor_lab", "--help"],
            "reports of 12 cells": ["backdoor_lab.reports", "multirun_reports"],
        }
        figures = []
        for name, arguments in asked.items():
            seconds = _best(command(*arguments), Path(folder), rounds=5)
            figures.append(Figure(name, seconds, "s", "<= 1"))
            loaded = _loads_torch(arguments, Path(folder))
            figures.append(Figure(f"{name}: torch imported", loaded, "", "<= 0"))
    return figures


def _loads_torch(arguments: Sequence[str], folder: Path) -> int:
    code = (
        "import atexit, runpy, sys; sys.argv = sys.argv[1:];"
        "atexit.register(lambda: print('torch' in sys.modules));"
        "runpy.run_module(sys.argv[0], run_name='__main__')"
    )
    _, out = timed([sys.executable, "-c", code, *arguments], folder)
    return int(out.splitlines()[-1] == "True")


def _tables() -> list[Figure]:
    """Measure the tables of 10,000 records, first as one file per cell, then frozen into one
    file."""
    found = []
    with tempfile.TemporaryDirectory() as name:
        sweep, frozen = Path(name) / "many", Path(name) / "frozen"
        write_sweep(sweep, demo_record(), MANY)
        timed(command("backdoor_lab.results", "freeze", str(sweep), "--out", str(frozen)), sweep)
        for what, folder in (("records", sweep), ("frozen records", frozen)):
            seconds = _best(command("backdoor_lab.reports", str(folder)), sweep, rounds=3)
            least = _best([sys.executable, "-c", LEAST, str(folder)], sweep, rounds=3)
            found += [
                Figure(f"tables of 10,000 {what}, the whole command", seconds, "s", "<= 2"),
                Figure("reading and decoding these, and importing pandas, alone", least, "s"),
            ]
    return found


def demo_record() -> dict[str, Any]:
    """Read one of the demo's committed records, which has a realistic length."""
    return dict(json.loads(next(frozen_lines(ROOT / "multirun_reports" / "demo" / "report"))))


def write_sweep(folder: Path, record: dict[str, Any], cells: int) -> None:
    """Write a sweep with records of `cells` cells, each a variation of `record`."""
    folder.mkdir(parents=True)
    asked = [_varied(record, number) for number in range(cells)]
    for each in asked:
        (folder / each["id"]).mkdir()
        (folder / each["id"] / "record.json").write_text(sealed(readable(each)))
    listed = [{"id": each["id"], "choices": each["choices"], "overrides": []} for each in asked]
    said = {"schema": 1, "name": "many", "command": "", "asked": listed}
    (folder / "sweep.json").write_text(json.dumps(said))


def _varied(record: dict[str, Any], number: int) -> dict[str, Any]:
    """Vary a record as if it came from a grid of 100 choices and 100 seeds, with 500 poisoned
    images."""
    choices = {
        **record["choices"], "trigger": ("pixel", "pattern")[number % 2],
        "target": ("bird", "dog", "horse", "cat", "ship")[number // 2 % 5],
        "ratio": (number // 10 % 10 + 1) / 100, "seed": number // 100,
    }  # fmt: skip
    config = record["config"] | {key: choices[key] for key in ("ratio", "seed")}
    config["trigger"] = record["config"]["trigger"] | {"name": choices["trigger"]}
    changed = {"id": f"cell-{number:05d}", "choices": choices, "config": config}
    indices = list(range(0, 50_000, 100))
    hashes = record["hashes"] | {"poison": digest(indices)}
    varied = record | changed | {"poison_indices": indices, "hashes": hashes}
    # The seal is valid only for the original record. With it, the variation would count as damaged.
    del varied["seal"]
    return varied


def _best(arguments: Sequence[str], folder: Path, rounds: int) -> float:
    sides = {"command": lambda: timed(arguments, folder)[0]}
    return min(by_turns(sides, rounds)["command"])
