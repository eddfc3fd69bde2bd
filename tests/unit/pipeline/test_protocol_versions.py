"""A preset of a protocol whose meaning changes gets a new version, which every record has."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from backdoor_lab import identity
from backdoor_lab.compare.report import SweepReport
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.identity import table as identity_table
from backdoor_lab.identity.__main__ import main
from backdoor_lab.pipeline.keys import check_keys
from backdoor_lab.results.records import parse
from backdoor_lab.results.seal import sealed
from backdoor_lab.results.sweeps import read_sweep
from backdoor_lab.tables.layout import PivotSpec
from backdoor_lab.tables.notes import AT
from backdoor_lab.tables.pivot import pivot_cells
from tests.helpers.cells import cell_of, configuration, started
from tests.helpers.records import record, write_sweep


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An editable copy of the configurations and of identity.json."""
    copy = tmp_path / "conf"
    shutil.copytree(identity_table.conf_dir(), copy)
    table = tmp_path / "identity.json"
    table.write_bytes(identity.TABLE.read_bytes())
    monkeypatch.setattr(identity_table, "conf_dir", lambda: copy)
    monkeypatch.setattr(identity_table, "TABLE", table)
    monkeypatch.setattr(identity, "TABLE", table)
    identity.forget()
    return copy


@pytest.fixture(autouse=True)
def _fresh() -> Any:
    yield
    identity.forget()


def replaced(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_every_protocol_has_a_version_in_identity_json() -> None:
    table = identity.committed()["protocols"]
    assert identity_table.current()["protocols"] == table
    assert all(entry["version"] >= 1 for entry in table.values())


def test_a_changed_protocol_requires_a_new_version(
    conf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Any changed value counts; comments and the order of keys do not."""
    path = conf / "protocol/group13.yaml"
    replaced(path, "ratio_of: target\n", "")
    path.write_text(f"# another comment\n{path.read_text()}ratio_of: target\n")
    assert identity_table.differing() == {}
    replaced(path, "budget: 1.5eps", "budget: 2eps")
    (said,) = identity_table.differing().values()
    assert said.startswith("changed its meaning since version 1")
    for name in ("group13", "all"):
        assert main(["--accept", name]) == 2
    assert "record a new version" in capsys.readouterr().err
    assert len(identity_table.differing()) == 1
    assert main(["--raise", "group13"]) == 0
    assert "version: 2" in path.read_text()
    assert identity_table.differing() == {}
    assert identity.committed()["protocols"]["group13"]["version"] == 2


def test_a_raised_version_must_be_recorded_in_identity_json(conf: Path) -> None:
    replaced(conf / "protocol/realistic.yaml", "version: 1", "version: 2")
    (said,) = identity_table.differing().values()
    assert said == "has version 2, but version 1 is recorded"


def test_another_protocol_version_changes_the_cell_id(tmp_path: Path) -> None:
    first = cell_of(tmp_path)
    assert first.protocol["version"] == 1
    assert first.choices["protocol"] == "group13"
    assert cell_of(tmp_path, "protocol.version=2").id != first.id


@pytest.mark.parametrize("version", [0, 1.5, "one", None])
def test_a_version_that_is_not_a_positive_integer_is_refused(version: Any, tmp_path: Path) -> None:
    config = configuration(tmp_path)
    config["protocol"]["version"] = version
    with pytest.raises(ConfigError, match=r"protocol\.version"):
        check_keys(config)


def test_help_lists_the_protocol_versions(tmp_path: Path) -> None:
    done = started(tmp_path, "--help")
    assert "group13@1, group13_literal@1" in done.stdout


def test_help_begins_with_what_the_program_does_and_prints_no_configuration(tmp_path: Path) -> None:
    lines = started(tmp_path, "--help").stdout.splitlines()
    assert lines[0].startswith("Puts a backdoor into an image data set")
    options = ("trigger", "target", "ratio", "defense", "seed", "dry_run")
    described = [line.split()[0] for line in lines if line.startswith("  ")]
    assert tuple(described[: len(options)]) == options
    assert any(line.startswith("trigger: adaptive_blend, ") for line in lines)
    assert not any("_target_" in line for line in lines)


def made(version: int | None, seed: int = 0) -> dict[str, Any]:
    found = record(seed=seed)
    found["protocol"] = {"name": "group13", "ratio_of": "target"}
    found["protocol"] |= {} if version is None else {"version": version}
    return found


def test_tables_show_version_1_for_records_without_a_protocol_version(tmp_path: Path) -> None:
    """Records without a version share a row with those of version 1, not 2."""
    old, first, second = made(None), made(1, seed=1), made(2, seed=2)
    assert parse(sealed(json.dumps(old)).encode()).protocol == first["protocol"]
    for each, cell_id in ((old, "a"), (first, "b"), (second, "c")):
        each["id"] = cell_id
    sweep = read_sweep(write_sweep(tmp_path / "sweep", [old, first, second]))
    tables = SweepReport(sweep).tables
    lines = [line for table in tables for line in table.notes if line.startswith("Protocol")]
    assert lines == ["Protocol group13@1: ratio_of=target.", "Protocol group13@2: ratio_of=target."]
    wide = pivot_cells(sweep.cells, PivotSpec(("target",), ("seed",), ("asr1",)))
    said = [line for table in wide for line in table.notes if line.startswith("Protocol")]
    assert said == lines


def test_results_of_modified_code_get_their_own_table(tmp_path: Path) -> None:
    """That table has a note; tables of recorded versions have none."""
    marks: list[Any] = [1, 2, "1+0123456789abcdef", "0+0123456789abcdef"]
    records = []
    for number, mark in enumerate(marks):
        each = record()
        each["id"], each["config"]["code"] = f"cell{number}", {"triggers": {"pixel": mark}}
        each["run"]["modified"] = ["pixel"] if "+" in str(mark) else []
        records.append(each)
    sweep = read_sweep(write_sweep(tmp_path / "sweep", records))
    assert [cell.id for cell in sweep.cells] == ["cell0", "cell1", "cell2", "cell3"]
    tables = SweepReport(sweep).tables
    notes = [[n for n in table.notes if n.startswith("Code ")] for table in tables]
    assert sorted(notes) == [
        [], [], ["Code modified after its version was recorded: pixel."],
        ["Code without a recorded version: pixel."],
    ]  # fmt: skip


def test_tables_and_comparisons_explain_versions_only_if_they_show_any(tmp_path: Path) -> None:
    records = [record(defense=defense) for defense in ("spectral", "random")]
    for number, each in enumerate(records):
        each["id"], each["config"]["code"] = f"cell{number}", {"defenses": {each_name(each): 2}}
        each["protocol"] = None
    sweep = read_sweep(write_sweep(tmp_path / "sweep", records))
    report = SweepReport(sweep)
    assert report.compared is not None
    wide = pivot_cells(sweep.cells, PivotSpec(("defense",), ("target",), ("asr1",)))
    for notes in (report.tables[0].notes, wide[0].notes, report.compared.notes):
        assert [note for note in notes if note.startswith("NAME@N: version N")] == [AT]
    (plain,) = SweepReport(read_sweep(write_sweep(tmp_path / "plain", [record()]))).tables
    explained = any("@" in note.replace(AT, "") for note in plain.notes)
    assert (AT in plain.notes) == explained


def each_name(made: dict[str, Any]) -> str:
    return str(made["choices"]["defense"])
