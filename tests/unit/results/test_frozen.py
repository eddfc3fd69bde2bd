"""Seals (checksums of records) and frozen sweeps of three files: every edit is detected."""

from __future__ import annotations

import io
import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from backdoor_lab import export, status
from backdoor_lab.compare import __main__ as compare
from backdoor_lab.core.atomic_io import digest, readable
from backdoor_lab.core.errors import DataError
from backdoor_lab.figures import __main__ as figures
from backdoor_lab.reports import __main__ as reports
from backdoor_lab.results.__main__ import freeze, main
from backdoor_lab.results.frozen import RECORDS, frozen_lines, without_outside_paths
from backdoor_lab.results.index import HEAD
from backdoor_lab.results.seal import check_seal, sealed, write_sealed
from backdoor_lab.results.sweeps import read_sweep
from tests.helpers.records import failed, record, write_sweep

SWEEP = [
    record(trigger=trigger, target=target, ratio=ratio)
    for trigger in ("pixel", "pattern")
    for target in ("bird", "dog")
    for ratio in (0.05, 0.1)
]


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A frozen sweep's three files, in a separate folder."""
    freeze(write_sweep(tmp_path / "run", SWEEP), tmp_path / "kept")
    return tmp_path / "kept"


def edited(kept: Path, old: str, new: str) -> None:
    text = (kept / RECORDS).read_text()
    assert old in text
    (kept / RECORDS).write_text(text.replace(old, new, 1))


def refused(kept: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The error of each command on a tampered frozen sweep; none prints a figure."""
    said = []
    for run in (
        lambda: reports.main([str(kept)]),
        lambda: status.main([str(kept)]),
        lambda: figures.main([str(kept)]),
        lambda: export.main([str(kept), "--out", str(kept / "out.csv")]),
        lambda: compare.main([str(kept), "reference"]),
    ):
        assert run() == 2
        told = capsys.readouterr()
        assert "|" not in told.out
        said.append(told.err)
    return said


def test_rates_on_transformed_images_are_frozen_and_later_edits_of_these_rates_are_detected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    under = {"jpeg75": {"nat1": 0.9, "asr1": 0.125, "nat2": None, "asr2": None}}
    freeze(write_sweep(tmp_path / "run", [record(under=under)]), tmp_path / "kept")
    (line,) = frozen_lines(tmp_path / "kept")
    assert json.loads(line)["under"] == under
    assert reports.main([str(tmp_path / "kept"), "values=asr1_under.jpeg75"]) == 0
    assert "12.50" in capsys.readouterr().out
    edited(tmp_path / "kept", '"asr1":0.125', '"asr1":0.925')
    refused(tmp_path / "kept", capsys)


def test_the_seal_of_a_record_is_valid_in_any_json_layout_and_with_any_line_endings() -> None:
    for text in (json.dumps({"id": "a", "nat1": 0.5}), readable({"id": "a", "nat1": 0.5})):
        data = sealed(text).encode()
        check_seal(data)
        check_seal(data.replace(b"\n", b"\r\n"))
        assert json.loads(data).keys() == {"id", "nat1", "seal"}


def test_every_flipped_bit_that_changes_a_value_invalidates_the_seal_of_a_record() -> None:
    whole = sealed(readable(SWEEP[0])).encode()
    value = json.loads(whole)
    draw = random.Random(0)
    for _ in range(2000):
        data = bytearray(whole)
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        try:
            check_seal(bytes(data))
        except DataError:
            continue
        assert json.loads(data) == value


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace('"nat1": 0.', '"nat1": 0.9', 1),
        lambda text: text.replace('"nat1"', '"nat1": 0.91, "nat1"', 1),
        lambda text: text[: text.rindex(",")] + "}",
        lambda text: text.replace('"seal": "', '"seal": "0', 1),
        lambda text: "",
    ],
    ids=["edited figure", "repeated key", "no seal", "edited seal", "empty line"],
)
def test_a_record_with_an_edited_value_or_a_repeated_key_or_no_valid_seal_is_refused(
    damage: Any,
) -> None:
    text = sealed(json.dumps(SWEEP[0]))
    assert damage(text) != text
    with pytest.raises(DataError, match="seal"):
        check_seal(damage(text).encode())


def test_a_frozen_sweep_has_the_same_tables_as_the_original_sweep(kept: Path) -> None:
    run = kept.parent / "run"
    assert sorted(path.name for path in kept.iterdir()) == [
        "records.jsonl", "sweep.json", "tables.md",
    ]  # fmt: skip
    # A frozen record also has the hashes of the lists it omits.
    cells = [[replace(c, hashes={}) for c in read_sweep(each).cells] for each in (run, kept)]
    assert cells[0] == cells[1]
    for folder in (run, kept):
        assert reports.main([str(folder)]) == 0
    tables = [{p.name: p.read_text() for p in (f / "tables").iterdir()} for f in (run, kept)]
    # The hash of the poison indices is recorded when they are omitted.
    frames = [pd.read_csv(io.StringIO(each.pop("records.csv")), dtype=str) for each in tables]
    noted = [frame.pop("hashes.poison") for frame in frames]
    assert (noted[0].isna().all(), noted[1].notna().all()) == (True, True)
    assert frames[0].equals(frames[1])
    assert tables[0] == tables[1]
    assert "| bird" in (kept / "tables.md").read_text()


def test_a_frozen_sweep_lists_every_command_and_machine(tmp_path: Path) -> None:
    """Older records describe the machine by a single string; it is listed, too."""
    compute = {"processor": "X", "instruction_set": "AVX2", "threads": 1, "precision": "fp32"}
    made = [record(seed=0), record(seed=1), record(seed=2)]
    for number, each in enumerate(made):
        each["run"] = each["run"] | {"command": f"command {min(number, 1)}"}
    made[2]["run"]["compute"] = compute
    freeze(write_sweep(tmp_path / "run", made), tmp_path / "kept")
    found = json.loads((tmp_path / "kept" / "sweep.json").read_text())
    assert found["commands"][:2] == ["command 0", "command 1"]
    assert found["machines"] == [made[0]["run"]["device"], compute]


def test_freezing_replaces_long_lists_with_their_hashes(kept: Path) -> None:
    for line, whole in zip(frozen_lines(kept), SWEEP, strict=True):
        found = json.loads(line)
        assert "poison_indices" not in found
        assert found["hashes"]["poison"] == digest(whole["poison_indices"])


def test_freezing_always_keeps_the_hash_of_a_curve_and_keeps_the_curve_on_request(
    tmp_path: Path,
) -> None:
    one = record()
    one["detection"]["curve"] = {"removed": [0, 1], "left": [2.0, 1.0]}
    run = write_sweep(tmp_path / "run", [one])
    for keep in (False, True):
        freeze(run, tmp_path / str(keep), keep_curve=keep)
        (line,) = frozen_lines(tmp_path / str(keep))
        found = json.loads(line)
        assert ("curve" in found["detection"]) is keep
        assert found["hashes"]["curve"] == digest(one["detection"]["curve"])


def test_a_rerun_cell_takes_precedence_over_its_frozen_record(kept: Path) -> None:
    again = json.loads(json.dumps(SWEEP[0])) | {"nat1": 0.123}
    write_sweep(kept.parent / "new", [again])
    shutil.copytree(kept.parent / "new" / again["id"], kept / again["id"])
    found = {cell.id: cell.numbers["nat1"] for cell in read_sweep(kept).cells}
    assert len(found) == len(SWEEP)
    assert found[again["id"]] == 0.123


def test_a_frozen_sweep_with_an_edited_line_is_refused_by_every_command(
    kept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nat = json.dumps(SWEEP[3]["nat1"])
    edited(kept, f'"id":"{SWEEP[3]["id"]}"', f'"id":"{SWEEP[3]["id"]}" ')
    assert nat in (kept / RECORDS).read_text()
    for said in refused(kept, capsys):
        assert "line 4" in said
        assert SWEEP[3]["id"] in said
        assert "seal does not match" in said


@pytest.mark.parametrize("change", ["removed", "moved", "repeated", "missing list"])
def test_removed_moved_or_added_lines_of_a_frozen_sweep_are_detected(
    kept: Path, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (kept / RECORDS).read_text().splitlines(keepends=True)
    changed = {
        "removed": lines[1:],
        "moved": [lines[1], lines[0], *lines[2:]],
        "repeated": [*lines, lines[0]],
        "missing list": lines,
    }[change]
    (kept / RECORDS).write_text("".join(changed))
    if change == "missing list":
        (kept / "sweep.json").unlink()
    for said in refused(kept, capsys):
        assert "sweep.json" in said


def test_a_damaged_record_is_not_frozen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_sweep(tmp_path / "run", SWEEP)
    path = run / SWEEP[0]["id"] / "record.json"
    path.write_text(path.read_text().replace('"nat1": 0.9', '"nat1": 0.8'))
    assert main(["freeze", str(run), "--out", str(tmp_path / "kept")]) == 2
    assert SWEEP[0]["id"] in capsys.readouterr().err
    assert not (tmp_path / "kept").exists()


def test_only_records_shown_in_tables_are_frozen(tmp_path: Path) -> None:
    """A record in a renamed folder is frozen, a record in a hidden folder is not."""
    run = write_sweep(tmp_path / "run", SWEEP)
    own = run / SWEEP[0]["id"]
    (run / ".trash").mkdir()
    text = (own / "record.json").read_text()
    (run / ".trash/record.json").write_text(text.replace('"nat1": 0.9', '"nat1": 0.8'))
    own.rename(run / "renamed")
    assert freeze(run, tmp_path / "kept") == len(SWEEP)
    assert min(json.loads(line)["nat1"] for line in frozen_lines(tmp_path / "kept")) > 0.9


def test_a_frozen_sweep_can_be_frozen_again_and_extended(kept: Path) -> None:
    before = (kept / RECORDS).read_bytes()
    freeze(kept, kept.parent / "again")
    assert (kept.parent / "again" / RECORDS).read_bytes() == before
    new = record(seed=1)
    (kept / new["id"]).mkdir()
    write_sealed(kept / new["id"] / "record.json", new)
    assert freeze(kept, kept.parent / "more") == len(SWEEP) + 1


def test_a_sweep_json_without_its_records_is_refused(
    kept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (kept / RECORDS).unlink()
    for said in refused(kept, capsys):
        assert "records.jsonl is missing" in said


def test_frozen_files_contain_no_machine_specific_path(tmp_path: Path) -> None:
    one = failed(record(), "failed: killed while reading /home/me/data/x.npz")
    freeze(write_sweep(tmp_path / "run", [one]), tmp_path / "kept")
    said = "".join(path.read_text() for path in (tmp_path / "kept").iterdir())
    assert "x.npz" in said
    assert "/home" not in said


def test_poison_indices_that_do_not_match_their_hash_are_not_frozen(tmp_path: Path) -> None:
    one = record()
    one["hashes"] = {"poison": "0" * 64}
    with pytest.raises(DataError, match="poison_indices"):
        freeze(write_sweep(tmp_path / "run", [one]), tmp_path / "kept")


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("x dataset.root=../data/set.tar.xz a", "x dataset.root=set.tar.xz a"),
        ("dataset.root=/mnt/big/set.npz,~/x/y.npz", "dataset.root=set.npz,y.npz"),
        ("hydra.sweep.dir=multirun_reports/a/b", "hydra.sweep.dir=multirun_reports/a/b"),
        ("'store.root=/a b/c'", "'store.root=a b/c'"),
        ("dataset.root=/data store.root=~me/st", "dataset.root=data store.root=st"),
        ("no file C:\\Users\\me\\x.npz", "no file x.npz"),
        ("https://arxiv.org/abs/1712.05526 and/or", "https://arxiv.org/abs/1712.05526 and/or"),
        ("1/2 of 3/4", "1/2 of 3/4"),
    ],
)
def test_paths_outside_the_working_directory_are_reduced_to_their_last_part(
    given: str, wanted: str
) -> None:
    assert without_outside_paths({given: [given]}) == {wanted: [wanted]}


def test_the_recorded_hours_count_shared_stages_once(tmp_path: Path) -> None:
    """All made-up records share two trainings, which took 58 seconds in total."""
    freeze(write_sweep(tmp_path / "run", SWEEP), tmp_path / "kept")
    content = json.loads((tmp_path / "kept" / "sweep.json").read_text())
    assert content["hours"] == round(58 / 3600, 2)
    assert content["cells"] == len(SWEEP)


def test_the_index_of_results_is_generated_from_the_sweeps_and_their_documents(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = [record(seed=seed) for seed in range(3)]
    made[0]["run"]["started"] = "2026-11-02T10:00:00+00:00"
    made[1]["run"]["started"] = "2026-11-04T10:00:00+00:00"
    for name, part in (("a", made[:2]), ("b", made[2:])):
        freeze(write_sweep(tmp_path / "run" / name, part), tmp_path / "kept/paper" / name)
    (tmp_path / "kept/paper/README.md").write_text("# Does it work?\n")
    (tmp_path / "kept/README.md").write_text(f"# Kept\n\n{HEAD}| old |\n\nAfter it.\n")
    assert main(["index", str(tmp_path / "kept"), "--write"]) == 0
    line = "| Does it work? | [paper](paper/README.md) | 2 | 3 | 0.0 | 2026-11-02 to 2026-11-04 |\n"
    assert line in capsys.readouterr().out
    assert (tmp_path / "kept/README.md").read_text() == f"# Kept\n\n{HEAD}{line}\nAfter it.\n"
