"""Two versions of a trigger or defense are two methods with different names and separate means."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from backdoor_lab.compare.comparison import comparison_of
from backdoor_lab.compare.pairs import one_sweep
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.figures.ratios import panels
from backdoor_lab.figures.transformed import panels as transformed
from backdoor_lab.page.analysis_command import named
from backdoor_lab.page.page_rows import columns, shared
from backdoor_lab.results.facts import CellFields
from backdoor_lab.results.records import CellRecord, parse
from backdoor_lab.results.seal import sealed
from backdoor_lab.results.sweeps import read_sweep
from backdoor_lab.results.versions import labels, unversioned, version_of
from backdoor_lab.tables.layout import REPORT, PivotSpec, split
from backdoor_lab.tables.learned import CleanNetworks
from backdoor_lab.tables.pivot import pivot
from tests.helpers.records import record, write_sweep


def made(version: Any, seed: int = 0, defense: str = "spectral", trigger: Any = 1, **more: Any
         ) -> dict[str, Any]:  # fmt: skip
    """A record with these versions of its defense and its trigger."""
    code = {"defenses": {defense: version}, "triggers": {"pixel": trigger}, "stages": {"train": 3}}
    target = f"backdoor_lab.defenses.{defense}.Made"
    config = {"recipe": {"lr": 0.1}, "seed": seed, "code": code, "defense": {"_target_": target}}
    one = record(defense=defense, seed=seed, **{"config": config, **more})
    return one | {"id": f"{one['id']}-{version}-{trigger}"}


def cells(*records: dict[str, Any]) -> list[CellRecord]:
    return [parse(sealed(json.dumps(one)).encode()) for one in records]


WIDE = PivotSpec(("defense",), ("target",), ("nat2", "asr2"))
WITHOUT = PivotSpec(("target",), (), ("nat2",))
TWO = cells(made(1, seed=0, nat2=0.9), made(2, seed=1, nat2=0.5))


def test_a_version_is_shown_if_it_is_not_1_or_if_a_sweep_has_several() -> None:
    assert labels(TWO[:1], "defense") == ["spectral"]
    assert labels(TWO[1:], "defense") == ["spectral@2"]
    assert labels(TWO, "defense") == ["spectral@1", "spectral@2"]
    assert labels(TWO, "trigger") == ["pixel", "pixel"]
    others = cells(made(2), made(1, defense="strip"))
    assert labels(others, "defense") == ["spectral@2", "strip"]


def test_missing_cells_are_labeled_with_the_version_that_all_other_cells_share() -> None:
    """Records without a version count as version 1."""
    old, new = cells(record(), made(3, seed=1))
    missing = CellRecord("m", "missing", old.choices)
    assert version_of(old, "defense") == "1"
    assert version_of(missing, "defense") is None
    assert labels([old, new], "defense") == ["spectral@1", "spectral@3"]
    assert labels([new, missing], "defense") == ["spectral@3", "spectral@3"]
    assert labels([old, new, missing], "defense")[2] == "spectral"


def test_a_control_that_uses_a_method_shows_the_version_of_that_method() -> None:
    config = {
        "code": {"defenses": {"random": 1, "spectral": 2}},
        "defense": {"_target_": "backdoor_lab.defenses.random.Random"}, "seed": 0,
    }  # fmt: skip
    (one,) = cells(record(defense="random", config=config))
    assert labels([one], "defense") == ["random@1 with spectral@2"]
    assert unversioned("random@1 with spectral@2") == "random"


def test_code_without_a_recorded_version_is_shown_without_a_version() -> None:
    (one,) = cells(made("0+0123456789"))
    assert labels([one], "defense") == ["spectral"]


def test_several_states_of_a_modified_method_are_told_apart_by_hashes() -> None:
    """Each state of the code has its own row in the table of the sweep, next to its control."""
    states = [made("0+0123456789"), made("0+abcdef0123"), made(1), made("1+00ff00ff00")]
    found = cells(*states, record(defense="random", asr2=0.5))
    names = ["spectral@0+01234567", "spectral@0+abcdef01", "spectral@1", "spectral@1+00ff00ff"]
    assert labels(found, "defense") == [*names, "random"]
    assert {unversioned(name) for name in names} == {"spectral"}
    assert [version_of(cell, "defense") for cell in found[:4]] == ["1"] * 4
    tables = pivot(CellFields(found), REPORT)
    assert len(tables) == 1
    assert [row[-1] for row in tables[0].rows] == [*names, "random"]
    compared, _ = one_sweep(CellFields(found, ["defense"]), "defense", "random")
    assert [side.name for side in compared if side.pairs] == names


@pytest.mark.parametrize("spec", [REPORT, WIDE, WITHOUT], ids=["report", "wide", "without"])
def test_no_table_has_a_mean_over_two_versions(spec: PivotSpec) -> None:
    """This holds whether the defense is an axis of the table or not."""
    tables = pivot(CellFields(TWO), spec)
    means = [each.estimates["nat2"].mean for table in tables for each in table.cells.values()]
    assert sorted(means) == [50.0, 90.0]
    said = "".join([f"{table.title}{table.rows}" for table in tables])
    assert "spectral@1" in said
    assert "spectral@2" in said


def test_each_version_of_a_trigger_has_its_own_table() -> None:
    found = pivot(CellFields(cells(made(1), made(1, seed=1, trigger=2))), REPORT)
    assert [table.title for table in found] == ["trigger pixel@1", "trigger pixel@2"]


def test_seeds_of_a_single_version_share_a_row_that_shows_the_version() -> None:
    (table,) = pivot(CellFields(cells(made(2), made(2, seed=1))), REPORT)
    assert [row[-1] for row in table.rows] == ["spectral@2"]


def test_the_data_frame_has_separate_columns_for_versions() -> None:
    frame = CellFields(TWO).frame
    assert frame["defense"].tolist() == ["spectral", "spectral"]
    assert frame["defense_version"].tolist() == ["1", "2"]
    assert frame["trigger_version"].tolist() == ["1", "1"]


def test_different_trigger_versions_give_separate_cells_but_different_stage_versions_do_not(
    tmp_path: Path,
) -> None:
    both = [made(1), made(2)]
    assert len(read_sweep(write_sweep(tmp_path / "a", both)).cells) == 2
    other = made(1)
    other["config"]["code"]["stages"]["train"] = 4
    other["id"] += "-b"
    assert len(read_sweep(write_sweep(tmp_path / "b", [made(1), other])).cells) == 1


def test_the_page_shows_the_versions_of_components() -> None:
    (column,) = [each for each in columns(TWO) if each.head == "Defense"]
    assert column.texts == ["spectral@1", "spectral@2"]
    assert named(TWO[1])["defense"] == "spectral@2"
    triggers = cells(made(1), made(1, trigger=2))
    recipes = [dataclasses.replace(cell, choices={"recipe": "demo"}) for cell in triggers]
    assert shared(recipes) == {"recipe": "demo"}


def test_each_version_has_its_own_curve_over_the_ratio() -> None:
    (group,) = split(CellFields(TWO))
    (panel,) = panels(group)
    assert [line.name for line in panel.lines["nat"]][1:] == [
        "after spectral@1", "after spectral@2",
    ]  # fmt: skip
    assert {line.name for line in panel.lines["auroc"]} == {"after spectral@1", "after spectral@2"}


def test_accuracy_on_transformed_images_is_not_averaged_over_versions_of_a_trigger() -> None:
    under = {"jpeg75": {"asr1": 0.5, "nat1": 0.5}, "jpeg90": {"asr1": 0.75, "nat1": 0.75}}
    values = ("asr1", "nat1", "asr1_under.jpeg75", "asr1_under.jpeg90", "nat1_under.jpeg75",
              "nat1_under.jpeg90")  # fmt: skip
    spec = PivotSpec(("trigger",), (), values)
    for trigger, shown in ((1, True), (2, False)):
        both = cells(made(1, under=under), made(1, seed=1, trigger=trigger, under=under))
        (table,) = pivot(CellFields(both, spec.axes), spec)
        (panel,) = transformed(table, "asr1")
        assert (panel.accuracy is not None) == shown


def test_cells_are_compared_with_clean_networks_of_the_same_trigger_version_only() -> None:
    clean = [made(1, ratio=0.0, asr1=0.1), made(1, seed=1, ratio=0.0, trigger=2, asr1=0.3)]
    one, two = cells(*clean)
    found = CleanNetworks.among([one, two])
    assert (found.expected(one), found.expected(two)) == ((0.1, 1800), (0.3, 1800))


def sweep(folder: Path, *records: dict[str, Any]) -> Any:
    return read_sweep(write_sweep(folder, list(records)))


def test_a_comparison_of_two_sweeps_names_both_versions(tmp_path: Path) -> None:
    """The versions are in a note if there is one defense, and in the lines if there are several."""
    one, two = sweep(tmp_path / "a", made(1)), sweep(tmp_path / "b", made(2))
    found = comparison_of([two, one])
    assert any("defense: spectral@2 → spectral@1" in note for note in found.notes)
    strip = made(1, defense="strip")
    one, two = sweep(tmp_path / "c", made(1), strip), sweep(tmp_path / "d", made(2), strip)
    found = comparison_of([two, one], values="nat2")
    assert found.labels == ("defense",)
    assert [line.labels for line in found.lines] == [
        ("strip",), ("spectral@2 − spectral@1",), (),
    ]  # fmt: skip


def test_a_comparison_does_not_average_cells_of_different_defense_versions(tmp_path: Path) -> None:
    mixed = [made(1, seed=0, nat2=0.9), made(2, seed=1, nat2=0.5)]
    base = [made(1, seed=0, nat2=0.8), made(1, seed=1, nat2=0.8)]
    found = comparison_of([sweep(tmp_path / "a", *mixed), sweep(tmp_path / "b", *base)],
                          values="nat2")  # fmt: skip
    assert [(line.labels, line.ours, line.base) for line in found.lines] == [
        (("spectral@1",), 90.0, 80.0), (("spectral@2 − spectral@1",), 50.0, 80.0),
    ]  # fmt: skip
    assert any("several versions" in note for note in found.notes)


def test_pairing_prefers_cells_of_the_same_version(
    tmp_path: Path,
) -> None:
    one = sweep(tmp_path / "a", made(1, nat2=0.9))
    both = sweep(tmp_path / "b", made(2, nat2=0.1), made(1, nat2=0.8))
    (line,) = comparison_of([one, both], values="nat2").lines
    assert (line.ours, line.base) == (90.0, 80.0)


def test_a_comparison_within_a_sweep_has_a_line_for_each_version_of_a_defense(
    tmp_path: Path,
) -> None:
    random = [made(1, defense="random", seed=seed) for seed in (0, 1)]
    whole = sweep(tmp_path, made(1), made(2, seed=1), *random)
    found = comparison_of([whole], by="defense", base="random", values="nat2")
    assert [(line.side, line.result.n) for line in found.lines] == [
        ("spectral@1", 1), ("spectral@2", 1),
    ]  # fmt: skip


def test_the_base_of_a_comparison_may_omit_its_version_if_there_is_only_one(tmp_path: Path) -> None:
    whole = sweep(tmp_path / "a", made(2, defense="random"), made(1))
    found = comparison_of([whole], by="defense", base="random", values="nat2")
    assert [line.side for line in found.lines] == ["spectral"]
    whole = sweep(tmp_path / "b", made(1, defense="random"), made(2, defense="random"), made(1))
    with pytest.raises(ConfigError, match="use one of random@1, random@2"):
        comparison_of([whole], by="defense", base="random")
