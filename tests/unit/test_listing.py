"""Which cells of a sweep count as done: those whose record is whole, and no other."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cells import TINY, lasting, run_here, started

from backdoor_lab.errors import ConfigError
from backdoor_lab.sweep.listing import finished, status_of

DAMAGE: dict[str, Callable[[str], str]] = {
    "a rate above one": lambda text: re.sub(r'"nat2": [0-9.]+', '"nat2": 7.5', text),
    "a negative count": lambda text: re.sub(r'"pois_left": \d+', '"pois_left": -1', text),
    "text for a number": lambda text: re.sub(r'"asr2": [0-9.]+', '"asr2": "0.5"', text),
    "NaN": lambda text: re.sub(r'"asr2": [0-9.]+', '"asr2": NaN', text),
    "infinity": lambda text: re.sub(r'"asr2": [0-9.]+', '"asr2": -Infinity', text),
    "no rate": lambda text: re.sub(r'"nat1": [0-9.]+', '"nat1": null', text),
    "no counts": lambda text: text.replace('"counts"', '"count"'),
    "another status": lambda text: text.replace('"status": "done"', '"status": "fine"'),
    "cut short": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
}


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A record's text and its cell's id."""
    root = tmp_path_factory.mktemp("store")
    record = run_here(root, root / "cell")
    return (root / "cell" / "record.json").read_text(), record["id"]


def test_a_whole_record_is_done(cell: tuple[str, str], tmp_path: Path) -> None:
    text, name = cell
    assert (finished(tmp_path, name), status_of(tmp_path)) == (False, None)
    # A word that looks like no number, in a text, is a text.
    (tmp_path / "record.json").write_text(text.replace('"command": "test"', '"command": "a: NaN"'))
    assert (finished(tmp_path, name), status_of(tmp_path)) == (True, "done")
    with pytest.raises(ConfigError, match=f"holds the record of {name}, and this cell is other"):
        finished(tmp_path, "other")


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_record_is_not(cell: tuple[str, str], tmp_path: Path, how: str) -> None:
    damaged = DAMAGE[how](cell[0])
    assert damaged != cell[0]
    (tmp_path / "record.json").write_text(damaged)
    assert not finished(tmp_path, cell[1])
    assert status_of(tmp_path) == "failed: damaged record"


def test_the_same_command_mends_it(tmp_path: Path) -> None:
    """The record is again what it was: its stages are still in the store."""
    words = ["-m", *TINY, "retrain=false", "hydra.sweep.dir=here"]
    assert started(tmp_path, *words).returncode == 0
    (path,) = tmp_path.rglob("record.json")
    whole: dict[str, Any] = json.loads(path.read_text())
    path.write_text(path.read_text().replace('"pois_left": ', '"pois_left": -1'))
    again = started(tmp_path, *words)
    assert again.returncode == 0, again.stderr
    assert "`counts.pois_left` must satisfy 0 <= counts.pois_left" in again.stdout + again.stderr
    assert lasting(json.loads(path.read_text())) == lasting(whole)
