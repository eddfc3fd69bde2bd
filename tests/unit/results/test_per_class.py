"""Accuracies per class in records: their measures, older records, and invalid entries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from backdoor_lab.core.errors import ConfigError, DataError
from backdoor_lab.export import frame_of
from backdoor_lab.results.measure_names import measures_of
from backdoor_lab.results.metrics import MEASURE, before_defense, class_name, figure_of
from backdoor_lab.results.per_class import per_class_of
from backdoor_lab.results.records import parse
from backdoor_lab.results.seal import sealed
from backdoor_lab.results.sweeps import read_sweep
from tests.helpers.hostile import NAMES
from tests.helpers.records import per_class, record, write_sweep


def parsed(entry: Any) -> Any:
    return parse(sealed(json.dumps(record(per_class=entry))).encode())


def test_every_class_has_a_measure_before_and_after_the_defense() -> None:
    numbers = parsed(per_class()).numbers
    assert {name: value for name, value in numbers.items() if "_class." in name} == {
        "nat1_class.cat": 0.5, "nat1_class.bird": 1.0, "nat1_class.dog": 0.5,
        "nat2_class.cat": 0.75, "nat2_class.bird": 0.5, "nat2_class.dog": 1.0,
    }  # fmt: skip


def test_the_measure_of_a_class_states_its_class_and_its_network() -> None:
    found = MEASURE["nat2_class.a.b_under.c"]
    assert found.head == "Nat2 a.b_under.c"
    assert (found.better, found.scale) == (1, 100)
    assert "of class a.b_under.c after the defense" in found.says
    assert figure_of("nat2_class.a_under.b") == "nat2"
    assert class_name("nat1_class.x_class.y") == "x_class.y"
    assert before_defense("nat1_class.cat")
    assert not before_defense("nat2_class.cat")


def test_a_record_without_the_entry_is_read_as_before() -> None:
    older = record()
    assert "per_class" not in older
    assert parse(sealed(json.dumps(older)).encode()) == parsed(None)


def test_absent_accuracies_have_no_measure() -> None:
    numbers = parsed(per_class(nat1=[0.5, None, 1], nat2=None, confusion1=None)).numbers
    names = [name for name in numbers if "_class." in name]
    assert names == ["nat1_class.cat", "nat1_class.dog"]


@pytest.mark.parametrize(
    "entry",
    [3, [], {}, {"classes": ["a"]}, per_class(classes=["a", 1, "b"]), per_class(n_test=[1, 2]),
     per_class(n_test=None), per_class(nat1=None), per_class(nat1=[0.5, 1.5, 0]),
     per_class(nat2=[0.5, "x", 0]), per_class(nat2=[0.5, float("nan"), 0]), per_class(nat2=0.5),
     per_class(confusion1=[[1, 2, 3]]), per_class(confusion2=[[1, 2, 3], None, [1, 2, 3]]),
     per_class(confusion2=[[1, 2, 3], [1, 2], [1, 2, 3]]), per_class(n_test=[1, -1, 2])],
    ids=str,
)  # fmt: skip
def test_an_invalid_entry_is_refused(entry: Any) -> None:
    with pytest.raises(DataError, match="`per_class"):
        parsed(entry)


def test_matrices_are_read_row_by_row() -> None:
    found = per_class_of({"per_class": per_class()})
    assert found is not None
    assert found.confusion1 == ((2, 2, 0), (0, 2, 0), (1, 0, 1))
    assert found.n_test == (4, 2, 2)


def test_the_export_has_a_column_for_every_class(tmp_path: Path) -> None:
    made = [record(per_class=per_class()), record(seed=1)]
    frame = frame_of([read_sweep(write_sweep(tmp_path / "s", made))])
    assert frame["nat2_class.cat"].tolist()[0] == 0.75
    assert frame["nat2_class.cat"].isna().tolist() == [False, True]
    assert str(frame["nat1_class.dog"].dtype) == "float64"


@pytest.mark.parametrize("name", NAMES)
def test_hostile_class_names_can_be_exported(tmp_path: Path, name: str) -> None:
    made = record(per_class=per_class(classes=[name, "b", "c"]))
    frame = frame_of([read_sweep(write_sweep(tmp_path / "s", [made]))])
    frame.to_parquet(tmp_path / "x.parquet")
    assert 0.75 in frame.filter(like="nat2_class.").to_numpy()


def test_a_measure_of_an_unknown_class_is_one_clear_error() -> None:
    cells = [parsed(per_class()), parsed(per_class(nat2=None))]
    assert measures_of("asr2, nat2_class.cat", cells) == ("asr2", "nat2_class.cat")
    known = "Known: cat, bird, dog"
    with pytest.raises(
        ConfigError, match=f"class 'bir' is not known. Did you mean 'bird'. {known}"
    ):
        measures_of("nat2_class.bir", cells)
    with pytest.raises(ConfigError, match="no cell has a value of nat2_class.cat"):
        measures_of("nat2_class.cat", cells[1:])
    with pytest.raises(ConfigError, match="Older records"):
        measures_of("nat1_class.cat", [parsed(None)])
    with pytest.raises(ConfigError, match=r"nat1_class\.\*"):
        measures_of("nat", cells)
