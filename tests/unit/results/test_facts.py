"""Fields that distinguish cells are displayed as text and sorted by value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from backdoor_lab.results.facts import CellFields
from backdoor_lab.results.sweeps import read_sweep
from backdoor_lab.results.values import ratio_words
from tests.helpers.records import PROTOCOL, record, write_sweep

COUNTED = {**PROTOCOL, "ratio_of": "count"}


def facts(folder: Path, made: list[dict[str, Any]], *also: str) -> CellFields:
    return CellFields(read_sweep(write_sweep(folder / "s", made)).cells, also)


def ordered(found: CellFields, *names: str) -> list[tuple[str, ...]]:
    return found.in_order(found.keys(names), names)


def test_numbers_are_sorted_by_value_and_names_in_sweep_order(tmp_path: Path) -> None:
    asked = [("warp", 0.3), ("warp", 0.05), ("abl", 1), ("warp", 0.0), ("abl", 0.05)]
    found = facts(tmp_path, [record(defense=d, ratio=r) for d, r in asked])
    assert ordered(found, "defense", "ratio") == [
        ("warp", "0%"), ("warp", "5%"), ("warp", "30%"), ("abl", "5%"), ("abl", "100%")
    ]  # fmt: skip
    assert ordered(found) == [()]
    assert found.in_order([], ["ratio"]) == []


@pytest.mark.parametrize("names", [("7", "10", "9"), ("5%", "10%", "1%"), ("nan", "2", "1")])
def test_class_names_that_look_like_numbers_are_not_sorted_as_numbers(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    found = facts(tmp_path, [record(target=name) for name in names])
    assert ordered(found, "target") == [(name,) for name in names]


def test_config_values_are_sorted_by_value_if_all_are_numbers(tmp_path: Path) -> None:
    made = [record(config={"lr": lr}, id=str(lr)) for lr in (0.1, 1e-5, 2)]
    found = facts(tmp_path, made)
    assert ordered(found, "config.lr") == [("1e-05",), ("0.1",), ("2",)]
    mixed = facts(tmp_path / "mixed", [*made, record(config={"lr": None}, id="none")])
    assert ordered(mixed, "config.lr") == [("0.1",), ("1e-05",), ("2",), ("any",)]
    switches = facts(tmp_path / "on", [record(config={"on": v}, id=str(v)) for v in (True, False)])
    assert ordered(switches, "config.on") == [("true",), ("false",)]


def test_equal_values_of_different_types_keep_their_own_text(tmp_path: Path) -> None:
    values = [1, True, 0.0, -0.0, False, 0, "1"]
    made = [record(seed=n, protocol={**PROTOCOL, "x": v}) for n, v in enumerate(values)]
    found = facts(tmp_path, made)
    texts = ["1", "true", "0", "-0", "false", "0", "1"]
    assert [found.word(number, "protocol.x") for number in range(7)] == texts
    assert found.words("protocol.x") == texts
    assert found.frame["protocol.x"].tolist() == texts


def test_ratios_given_as_image_counts_are_sorted_after_percentages(tmp_path: Path) -> None:
    made = [record(ratio=n, protocol=COUNTED) for n in (500, 20, 1)]
    made += [record(ratio=share) for share in (0.5, 0.01)]
    assert ordered(facts(tmp_path, made), "ratio") == [
        ("1%",), ("50%",), ("1",), ("20",), ("500",)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("ratio", "ratio_of", "said"),
    [
        (0.05, "target", "5%"), (0.003, None, "0.3%"), (1, "all", "100%"), (1, "count", "1"),
        (500, "count", "500"), (500, None, "500"), (0.1 + 0.2, "all", "30%"), (None, None, "any"),
        (0, "target", "0%"), (2.0, None, "2"),
    ],
)  # fmt: skip
def test_a_ratio_is_shown_as_percentage_or_image_count(
    ratio: float | None, ratio_of: str | None, said: str
) -> None:
    assert ratio_words(ratio, ratio_of) == said
