"""Which cells of a sweep count as done: exactly those with an intact record."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backdoor_lab.core.atomic_io import readable
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.page.write import write_tables
from backdoor_lab.results.__main__ import freeze
from backdoor_lab.results.seal import sealed
from backdoor_lab.results.sweeps import read_sweep
from backdoor_lab.sweep.manifest import (
    RequestedCell,
    finished,
    merge_asked,
    note_failure,
    place,
    status_of,
)
from tests.helpers.cells import TINY, lasting, run_here, started
from tests.helpers.obstacles import obstacle

DAMAGE: dict[str, Callable[[str], str]] = {
    "a rate above one": lambda text: re.sub(r'"nat2": [0-9.]+', '"nat2": 7.5', text),
    "a negative count": lambda text: re.sub(r'"pois_left": \d+', '"pois_left": -1', text),
    "text for a number": lambda text: re.sub(r'"asr2": [0-9.]+', '"asr2": "0.5"', text),
    "NaN": lambda text: re.sub(r'"asr2": [0-9.]+', '"asr2": NaN', text),
    "infinity": lambda text: re.sub(r'"asr2": [0-9.]+', '"asr2": -Infinity', text),
    "missing rate": lambda text: re.sub(r'"nat1": [0-9.]+', '"nat1": null', text),
    "missing counts": lambda text: text.replace('"counts"', '"count"'),
    "another status": lambda text: text.replace('"status": "done"', '"status": "fine"'),
    "another rate": lambda text: re.sub(r'"nat1": [0-9.]+', '"nat1": 0.5125', text),
    "a repeated key": lambda text: text.replace('"asr1"', '"nat1": 0.5125, "asr1"', 1),
    "missing seal": lambda text: re.sub(r',?\s*"seal": "[0-9a-f]+"', "", text),
    "truncated": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
}


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The text of a record and the id of its cell."""
    root = tmp_path_factory.mktemp("store")
    record = run_here(root, root / "cell")
    return (root / "cell" / "record.json").read_text(), record["id"]


def resealed(text: str, old: str, new: str) -> str:
    """The text of a record with `new` in place of `old`, and a seal that matches."""
    found = json.loads(text.replace(old, new))
    del found["seal"]
    return sealed(readable(found))


def test_a_cell_with_an_intact_record_is_done(cell: tuple[str, str], tmp_path: Path) -> None:
    text, name = cell
    assert (finished(tmp_path, name), status_of(tmp_path)) == (False, None)
    # Inside a string, NaN is valid.
    (tmp_path / "record.json").write_text(
        resealed(text, '"command": "test"', '"command": "a: NaN"')
    )
    assert (finished(tmp_path, name), status_of(tmp_path)) == (True, "done")
    with pytest.raises(ConfigError, match=f"contains the record of {name}, but this cell is other"):
        finished(tmp_path, "other")


@pytest.mark.parametrize("how", DAMAGE)
def test_a_cell_with_a_damaged_record_is_not_done(
    cell: tuple[str, str], tmp_path: Path, how: str
) -> None:
    damaged = DAMAGE[how](cell[0])
    assert damaged != cell[0]
    (tmp_path / "record.json").write_text(damaged)
    assert not finished(tmp_path, cell[1])
    assert status_of(tmp_path) == "failed: damaged record"


def same(text: bytes, expected: str) -> bool:
    try:
        return bool(json.loads(text) == json.loads(expected))
    except ValueError:
        return False


def test_a_record_in_which_a_flipped_bit_changes_a_value_does_not_count_as_done(
    cell: tuple[str, str], tmp_path: Path
) -> None:
    """Some flips only change white space; such records still count as done."""
    draw = random.Random(0)
    for _ in range(1000):
        text = bytearray(cell[0].encode())
        text[draw.randrange(len(text))] ^= 1 << draw.randrange(8)
        (tmp_path / "record.json").write_bytes(text)
        assert finished(tmp_path, cell[1]) == same(text, cell[0])


def test_repeating_the_command_replaces_a_damaged_record(tmp_path: Path) -> None:
    """The stages are still in the store, so the new record is identical."""
    words = ["-m", *TINY, "retrain=false", "hydra.sweep.dir=here"]
    assert started(tmp_path, *words).returncode == 0
    (path,) = tmp_path.rglob("record.json")
    whole: dict[str, Any] = json.loads(path.read_text())
    path.write_text(path.read_text().replace('"pois_left": ', '"pois_left": -1'))
    again = started(tmp_path, *words)
    assert again.returncode == 0, again.stderr
    assert "the seal does not match" in again.stdout + again.stderr
    assert lasting(json.loads(path.read_text())) == lasting(whole)


def test_a_sweep_with_frozen_records_can_be_extended(tmp_path: Path) -> None:
    """Tables show the frozen records and the new cell."""
    words = ["-m", *TINY, "retrain=false", "hydra.sweep.dir=here"]
    assert started(tmp_path, *words).returncode == 0
    freeze(tmp_path / "here", tmp_path / "here")
    (cell,) = (path.parent for path in tmp_path.rglob("record.json"))
    shutil.rmtree(cell)
    again = started(tmp_path, *words, "seed=1")
    assert again.returncode == 0, again.stderr
    sweep = read_sweep(tmp_path / "here")
    assert [each.status for each in sweep.cells] == ["done", "done"]
    assert sweep.warnings == []


SWEEP = ["-m", *TINY, "retrain=false", "seed=0,1", "hydra.sweep.dir=here"]


@pytest.mark.parametrize("what", ["directory", "named pipe", "link to itself"])
def test_a_sweep_renames_directories_pipes_and_links_that_are_in_the_way_of_its_files(
    what: str, tmp_path: Path
) -> None:
    """Each renaming is logged, and the files are written."""
    assert started(tmp_path, *SWEEP).returncode == 0
    here = tmp_path / "here"
    first, second = sorted(path.parent for path in here.glob("*/record.json"))
    kept = (second / "record.json").read_bytes()
    shutil.rmtree(first)
    (second / ".hydra/config.yaml").unlink()
    (second / "record.json").unlink()
    shutil.rmtree(here / "tables")
    paths = [here / name for name in ("sweep.json", "index.html", "tables")]
    paths += [second / "record.json", second / ".hydra/config.yaml"]
    paths += [first] * (what != "directory")
    paths = [path for path in paths if what != "directory" or path.name != "tables"]
    for path in paths:
        path.unlink(missing_ok=True)
        obstacle(path, what)
    again = started(tmp_path, *SWEEP)
    said = again.stdout + again.stderr
    assert again.returncode == 0, said
    assert "Traceback" not in said
    aside = [path.name.rpartition("-")[0] for path in here.rglob(".bad-*")]
    # index.html replaces a pipe or a link without renaming it.
    assert {f".bad-{path.name}" for path in paths if path.name != "index.html"} <= set(aside)
    assert lasting(json.loads((second / "record.json").read_text())) == lasting(json.loads(kept))
    assert len(json.loads((here / "sweep.json").read_text())["asked"]) == 2
    assert (here / "tables/records.csv").is_file()
    assert (here / "index.html").is_file()


def test_the_number_of_a_cell_counts_all_cells_of_the_folder(tmp_path: Path) -> None:
    asked = [{"id": name, "choices": {}} for name in ("x", "y", "z")]
    (tmp_path / "sweep.json").write_text(json.dumps({"asked": asked}))
    assert f"[{place(tmp_path, 'y')}pixel]" == "[2/3 in folder: pixel]"
    (tmp_path / "sweep.json").write_text(json.dumps({"asked": asked[:1]}))
    assert f"[{place(tmp_path, 'x')}pixel]" == "[pixel]"


@pytest.mark.parametrize("text", ['{"asked": null}', '{"asked": [{"id": 3}]}', "[]", "[" * 10**5])
def test_a_damaged_sweep_json_is_set_aside_and_written_again(text: str, tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(text)
    assert place(tmp_path, "x") == ""
    assert merge_asked(tmp_path, [RequestedCell("x", {"seed": 0}, {}, ())]) == [
        {"id": "x", "choices": {"seed": 0}}
    ]
    assert len(list(tmp_path.glob(".bad-sweep.json-*"))) == 1


def test_the_failure_of_a_cell_whose_record_cannot_be_written_is_reported(
    tmp_path: Path,
) -> None:
    """The cause is printed, logged and written to `records.csv`. The other cell completes."""
    plan = {"BACKDOOR_LAB_FAULT": "record.before:full:1"}
    result = started(tmp_path, *SWEEP, **plan)
    said = result.stdout + result.stderr
    assert result.returncode == 1, said
    assert "1 of 2 cells done" in said
    failed, done = sorted(
        (json.loads(path.read_text()) for path in (tmp_path / "here").glob("*/record.json")),
        key=lambda record: record["status"] == "done",
    )
    assert done["status"] == "done"
    assert failed["status"] == "failed: OSError: [Errno 28] No space left on device"
    assert "No space left" in (tmp_path / "here" / failed["id"] / "backdoor_lab.log").read_text()
    assert "failed: OSError" in (tmp_path / "here/tables/records.csv").read_text()
    assert f"{failed['id']}: failed: OSError" in said


def test_a_failure_without_a_record_is_shown_in_the_tables(tmp_path: Path) -> None:
    choices = {"trigger": "pixel", "target": "bird", "ratio": 0.1, "protocol": "group13",
               "defense": "none", "seed": 0}  # fmt: skip
    asked = [{"id": name, "choices": choices | {"seed": n}} for n, name in enumerate("ab")]
    (tmp_path / "sweep.json").write_text(json.dumps({"schema": 1, "asked": asked}))
    write_tables(tmp_path, {"a": "failed: not enough disk space"})
    text = (tmp_path / "tables/records.csv").read_text()
    assert "failed: not enough disk space" in text
    assert text.count("missing") == 1
    assert note_failure(tmp_path / "b", "StoreFullError: x\nmore") == "failed: StoreFullError: x"
    assert status_of(tmp_path / "b") == "failed: StoreFullError: x"
    assert note_failure(tmp_path / "stray", "why") == "failed: why"
    assert not (tmp_path / "stray").exists()
