"""Records and sweep folders: what is read and what is refused; nothing is dropped."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from backdoor_lab.core.errors import DataError
from backdoor_lab.results import records
from backdoor_lab.results.seal import sealed
from backdoor_lab.results.sweeps import find_sweeps, read_sweep
from tests.helpers.records import record, write_sweep


def parsed(made: dict[str, Any]) -> records.Cell:
    return records.parse(sealed(json.dumps(made)).encode())


def test_poison_indices_are_skipped_when_reading_a_record() -> None:
    made = record(poison_indices=list(range(5000)))
    cell = parsed(made)
    assert cell.done
    assert cell.numbers["nat1"] == made["nat1"]
    assert cell.numbers["pois_left"] < 9
    pretty = sealed(json.dumps(made, indent=1)).encode()
    assert records.parse(pretty) == cell
    assert records.decode(pretty)["poison_indices"] == []
    assert records.decode(b'{"poison_indices":["]",1]}')["poison_indices"] == ["]", 1]


@pytest.mark.parametrize("eighth", range(8))
def test_a_truncated_record_is_refused(eighth: int) -> None:
    data = sealed(json.dumps(record(poison_indices=list(range(500))))).encode()
    with pytest.raises(DataError):
        records.parse(data[: len(data) * eighth // 8])


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("schema", 2), ("schema", None), ("id", 7), ("status", "fine"), ("status", None),
        ("choices", None), ("choices", []), ("choices.ratio", "5%"), ("choices.ratio", True),
        ("choices.ratio", -0.1), ("choices.seed", "0"), ("choices.target", ["bird"]),
        ("nat1", 92.31), ("nat1", "0.9"), ("nat1", True), ("asr2", -0.1), ("counts", 3),
        ("counts.n_poisoned", -1), ("counts.n_poisoned", 10**400), ("detection.auroc", 1.1),
        ("protocol", "group13"), ("protocol.removal_budget", {"deep": 1}),
        ("choices.ratio", float("nan")),
    ],
)  # fmt: skip
def test_an_invalid_value_in_a_record_is_refused_and_named_in_the_error(
    path: str, value: Any
) -> None:
    made = copy.deepcopy(record())
    *above, last = path.split(".")
    (made[above[0]] if above else made)[last] = value
    with pytest.raises(DataError, match=last):
        parsed(made)


def test_rates_on_transformed_images_are_read_by_name_from_a_record() -> None:
    said = {"nat1": 0.9, "asr1": 0.25, "nat2": None, "asr2": float("nan")}
    cell = parsed(record(under={"jpeg75": said, "brightness0.5": {"asr1": 1}}))
    found = {name: value for name, value in cell.numbers.items() if "_under." in name}
    assert found == {
        "nat1_under.jpeg75": 0.9, "asr1_under.jpeg75": 0.25, "asr1_under.brightness0.5": 1
    }  # fmt: skip
    assert not any("_under." in name for name in parsed(record()).numbers)


@pytest.mark.parametrize(
    ("under", "named"),
    [
        ([], "`under`"), (None, "`under`"), ({"jpeg75": 3}, "under.jpeg75"),
        ({"jpeg75": {"asr1": 1.2}}, "under.jpeg75.asr1"),
        ({"jpeg75": {"asr1": "1"}}, "under.jpeg75.asr1"),
        ({"jpeg75": {"asr1": True}}, "under.jpeg75.asr1"),
        ({"jpeg75": {"asr3": 0.5}}, "under.jpeg75.asr3"), ({"<b>": {"asr1": 0.5}}, "<b>"),
    ],
)  # fmt: skip
def test_invalid_rates_on_transformed_images_are_refused_and_named_in_the_error(
    under: Any, named: str
) -> None:
    with pytest.raises(DataError, match=named):
        parsed(record(under=under))


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"schema": 1}'])
def test_malformed_bytes_are_refused_with_a_data_error(data: bytes) -> None:
    with pytest.raises(DataError):
        records.parse(data)


def test_non_finite_values_in_a_record_are_ignored() -> None:
    cell = parsed(record(nat1=float("nan"), asr1=float("inf"), nat2=None))
    assert not {"nat1", "asr1", "nat2"} & set(cell.numbers)
    assert "asr2" in cell.numbers


def test_the_configuration_text_of_a_record_omits_only_the_seed() -> None:
    def config(seed: int, other: int) -> str | None:
        return parsed(record(seed=seed, config={"seed": seed, "data": {"seed": other}})).config

    assert config(1, 1) == config(2, 2) != config(2, 5)
    # A seed with the same leading digits; a seed alone, first or last in its mapping.
    assert config(1, 12) == config(2, 12) == '{"data": {"seed": 12}}'
    made = record(seed=1, config={"a": {"seed": 1}, "seed": 1, "z": {"b": '", "seed": 1,'}})
    assert parsed(made).config == json.dumps({"a": {}, "z": {"b": '", "seed": 1,'}})


def test_equal_parts_of_several_records_are_one_object_in_memory() -> None:
    run = {"versions": {"torch": "2"}, "seconds": {"train": 1.5}}
    one, other = (parsed(record(seed=seed, run=run, config={"seed": seed})) for seed in (0, 1))
    assert one.protocol is other.protocol
    assert one.config is other.config
    assert one.run["versions"] is other.run["versions"]
    assert one.run["seconds"] is not other.run["seconds"]


@pytest.mark.parametrize("other", [True, 1.0, "1"])
def test_parts_of_records_are_shared_only_if_their_types_are_equal(other: Any) -> None:
    kept = [parsed(record(config={"x": v}, protocol={"x": v})) for v in (1, other)]
    assert [type(cell.protocol["x"]) for cell in kept] == [int, type(other)]
    assert [cell.config for cell in kept] == [json.dumps({"x": v}) for v in (1, other)]


def test_hidden_folders_are_not_searched_for_sweeps(tmp_path: Path) -> None:
    write_sweep(tmp_path / "b", [record()])
    write_sweep(tmp_path / "a" / "deeper", [record()], asked=[])
    write_sweep(tmp_path / ".store" / "x", [record()])
    write_sweep(tmp_path / "b" / ".store", [record(seed=9)], asked=[])
    assert find_sweeps(tmp_path) == [tmp_path / "a" / "deeper", tmp_path / "b"]
    assert find_sweeps(tmp_path / "b") == [tmp_path / "b"]
    assert find_sweeps(tmp_path / "nowhere") == []
    assert len(read_sweep(tmp_path / "b").cells) == 1


def test_requested_cells_come_first_in_the_requested_order_then_other_cells_in_sorted_order(
    tmp_path: Path,
) -> None:
    asked = [record(target=t) for t in ("horse", "bird")]
    extra = [record(target="bird", defense=d) for d in ("oracle", "none", "abl", "spectral")]
    extra += [record(target="bird", ratio=0.1)]
    sweep = read_sweep(write_sweep(tmp_path / "s", asked + extra[:3] + extra[4:], asked))
    found = [(c.choices["target"], c.choices["ratio"], c.choices["defense"]) for c in sweep.cells]
    assert found == [
        ("horse", 0.05, "spectral"), ("bird", 0.05, "spectral"), ("bird", 0.05, "abl"),
        ("bird", 0.05, "none"), ("bird", 0.05, "oracle"), ("bird", 0.1, "spectral"),
    ]  # fmt: skip


@pytest.mark.parametrize("listed", [True, False])
def test_a_damaged_record_is_read_as_a_failed_cell_with_a_warning(
    tmp_path: Path, listed: bool
) -> None:
    made = record()
    folder = write_sweep(tmp_path / "s", [made], None if listed else [])
    (folder / made["id"] / "record.json").write_text('{"schema": 1, "id"')
    sweep = read_sweep(folder)
    assert [(c.id, c.status) for c in sweep.cells] == [(made["id"], "failed: damaged record")]
    assert sweep.cells[0].choices == (made["choices"] if listed else {})
    assert len(sweep.warnings) == 1
    assert made["id"] in sweep.warnings[0]


@pytest.mark.parametrize("text", ["", "[]", '{"schema": 1}', '{"schema": 9, "asked": []}'])
def test_a_damaged_sweep_json_gives_a_warning_and_no_error(tmp_path: Path, text: str) -> None:
    folder = write_sweep(tmp_path / "s", [record()])
    (folder / "sweep.json").write_text(text)
    sweep = read_sweep(folder)
    assert len(sweep.cells) == 1
    assert "sweep.json" in sweep.warnings[0]


def test_invalid_entries_of_sweep_json_are_shown_with_warnings(tmp_path: Path) -> None:
    asked: list[Any] = [3, {"id": "x"}, {"id": "y", "choices": {"trigger": "pixel"}}]
    folder = tmp_path / "s"
    folder.mkdir()
    (folder / "sweep.json").write_text(json.dumps({"schema": 1, "asked": asked}))
    sweep = read_sweep(folder)
    assert [c.id for c in sweep.cells] == ["asked[0]", "x", "y"]
    assert len(sweep.warnings) == 3


def test_duplicate_records_of_a_seed_are_omitted_with_a_warning(tmp_path: Path) -> None:
    made = record()
    folder = write_sweep(tmp_path / "s", [made, {**made, "id": "newer-code"}], [made])
    (folder / "copy").mkdir()
    (folder / "copy" / "record.json").write_text(sealed(json.dumps(made)))
    sweep = read_sweep(folder)
    assert [c.id for c in sweep.cells] == [made["id"]]
    assert len(sweep.warnings) == 2
    assert all("omitted" in w for w in sweep.warnings)
