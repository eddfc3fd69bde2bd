"""What says below a table that its figures mean little, and when nothing stands in bold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_reports_records import PROTOCOL, failed, record, write_sweep

from backdoor_lab.compare.report import Report
from backdoor_lab.results.measures import MEASURE
from backdoor_lab.results.records import parse
from backdoor_lab.results.seal import sealed
from backdoor_lab.results.sweeps import read_sweep
from backdoor_lab.tables.layout import PivotSpec
from backdoor_lab.tables.pivot import pivot_cells
from backdoor_lab.tables.text import grids

RECORD = record()
LAYOUT = PivotSpec(("defense",), ("trigger",), ("nat2", "asr2"))


def shown(folder: Path, made: list[dict[str, Any]]) -> list[Any]:
    """The grids of a sweep in the report's layout and in a wide one."""
    sweep = read_sweep(write_sweep(folder, made))
    found = [grid for table in Report(sweep).tables for grid in grids(table)[:1]]
    return [
        *found,
        *(grid for table in pivot_cells(sweep.cells, LAYOUT) for grid in grids(table)),
    ]


def notes(folder: Path, made: list[dict[str, Any]]) -> list[str]:
    return [" ".join(grid.notes) for grid in shown(folder, made)]


def counted(**counts: int) -> dict[str, Any]:
    return record(counts={**RECORD["counts"], **counts})


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (counted(n_asr=3), "Fewer than 30 images: ASR rests on 3 test images (pixel bird 5% seed"),
        (counted(n_test=29), "Fewer than 30 images: Nat rests on 29 test images"),
        (record(top_share1=0.97, top_class1="cat"),
         "The network before the defense predicts one class (cat) for more than 90% of the clean"
         " test images (pixel bird 5% seed 0): Nat1 and ASR1 tell little."),
        (record(top_share2=0.91, top_class2="dog"),
         "The network after the defense predicts one class (dog) for more than 90% of the clean"
         " test images (pixel bird 5% spectral seed 0): Nat2 and ASR2 tell little."),
        (record(asr1=0.1, clean_rate1=0.1),
         "ASR1 is no higher than the clean rate, which is the share of the same test images"
         " classified as the target without the trigger (up to 10.00 %), in pixel bird 5% seed 0"),
        (counted(n_removed=0), "the retraining draws its own seed (retrain_seed=same takes that"),
    ],
)  # fmt: skip
def test_figures_that_say_little_are_named_below_both_kinds_of_table(
    tmp_path: Path, made: dict[str, Any], said: str
) -> None:
    assert [said in text for text in notes(tmp_path / "s", [made])] == [True, True]


def fitted(number: str, *accuracies: float, clean: float | None = None) -> list[dict[str, Any]]:
    """Records, a seed each, whose networks have these training accuracies; and a clean one's."""
    figure = f"train_accuracy{number}"
    made = [record(seed=seed, **{figure: value}) for seed, value in enumerate(accuracies)]
    nothing = {**RECORD["counts"], "n_poisoned": 0, "n_removed": 1}
    if clean is not None:
        made.append(record(ratio=0, counts=nothing, **{figure: clean}))
    return made


@pytest.mark.parametrize(
    ("made", "name", "marked"),
    [
        (fitted("1", 0.90, 0.879), "nat1", True),  # the best of the same ratio
        (fitted("1", 0.90, 0.881), "nat1", False),
        (fitted("1", 0.90), "nat1", False),  # nothing to compare it with
        (fitted("1", 0.90, clean=0.93), "nat1", True),
        (fitted("1", 0.95, 0.92, clean=0.93), "nat1", False),
        (fitted("2", 0.90, clean=0.93), "nat2", True),
        (fitted("2", 0.92, clean=0.93), "nat2", False),
    ],
)
def test_a_network_that_did_not_converge_is_marked_in_both_kinds_of_table(
    tmp_path: Path, made: list[dict[str, Any]], name: str, marked: bool
) -> None:
    sweep = read_sweep(write_sweep(tmp_path / "s", made))
    layout = PivotSpec(("target",), ("ratio",), ("nat1", "nat2"))
    found = [grids(table)[0] for table in Report(sweep).tables]
    found += [grid for table in pivot_cells(sweep.cells, layout) for grid in grids(table)]
    for grid in found:
        signed = {head for row in grid.rows for head, text in zip(grid.head, row, strict=True)
                  if "†" in text}  # fmt: skip
        assert signed == ({MEASURE[name].head} if marked else set())
        assert any(note.startswith("† The network") for note in grid.notes) == marked


@pytest.mark.parametrize(
    "made",
    [
        counted(n_asr=30, n_test=30), record(top_share1=0.9, top_class1="cat", top_share2=0.5),
        record(asr1=0.11, clean_rate1=0.1), RECORD, failed(counted(n_asr=3)), counted(n_removed=1),
        record(counts={**RECORD["counts"], "n_removed": 0}, config={"retrain_seed": "same"}),
        record(counts={**RECORD["counts"], "n_removed": 0}, nat2=None, asr2=None),
        record(counts={**RECORD["counts"], "n_removed": 0}, run={"stages": {"repair": {}}}),
    ],
)  # fmt: skip
def test_sound_figures_and_older_records_have_no_such_note(
    tmp_path: Path, made: dict[str, Any]
) -> None:
    words = ("Fewer than 30", "predicts one class", "no higher than", "draws its own seed")
    assert not [w for text in notes(tmp_path / "s", [made]) for w in words if w in text]


def test_many_such_cells_are_counted_and_all_of_them_are_every_cell(tmp_path: Path) -> None:
    made = [record(target=f"t{n}", ratio=r, top_share1=0.99 if r > 0.1 else 0.2, top_class1=f"c{n}")
            for n in range(5) for r in (0.05, 0.2)]  # fmt: skip
    text = notes(tmp_path / "some", made)[0]
    assert "(pixel t0 20% seed 0; pixel t1 20% seed 0; pixel t2 20% seed 0; 2 more)" in text
    text = notes(tmp_path / "all", [one for one in made if one["top_share1"] > 0.9])[0]
    assert (
        "one class (c0, c1, c2, c3, c4) for more than 90% of the clean test images (every" in text
    )


def test_one_attack_is_named_once_however_many_defenses_it_met(tmp_path: Path) -> None:
    made = [record(defense=d, top_share1=0.99, top_class1="cat") for d in ("spectral", "none")]
    text = notes(tmp_path / "s", [*made, record(target="dog")])[0]
    assert "(pixel bird 5% seed 0):" in text


def test_a_number_of_images_is_named_as_one(tmp_path: Path) -> None:
    made = record(ratio=500, protocol={**PROTOCOL, "ratio_of": "count"}, clean_rate1=1.0)
    assert "in pixel bird 500 seed 0: it shows no attack" in notes(tmp_path / "s", [made])[0]


def bold(folder: Path, made: list[dict[str, Any]]) -> list[set[str]]:
    return [{grid.head[column] for _, column in grid.best} for grid in shown(folder, made)]


def against(none: dict[str, Any], spectral: dict[str, Any], **both: Any) -> list[dict[str, Any]]:
    return [record(defense="none", **none, **both), record(defense="spectral", **spectral, **both)]


@pytest.mark.parametrize(
    "both",
    [
        {"asr1": 0.1, "clean_rate1": 0.1},
        {"asr1": 0.05, "clean_rate1": 0.1},
        {"counts": {**RECORD["counts"], "n_poisoned": 0}},
    ],
)
def test_asr2_is_never_bold_where_asr1_shows_no_attack(
    tmp_path: Path, both: dict[str, Any]
) -> None:
    values = {"asr2": 0.09, "nat2": 0.9}, {"asr2": 0.01, "nat2": 0.95}
    found = bold(tmp_path / "none", against(*values, **both))
    assert ["ASR2" in names for names in found] == [False, False]
    assert ["Nat2" in names for names in found] == [True, True]
    found = bold(tmp_path / "one", against(*values, asr1=0.9, clean_rate1=0.1))
    assert ["ASR2" in names for names in found] == [True, True]


@pytest.mark.parametrize(("spread", "is_bold"), [(0.05, False), (0.0001, True)])
@pytest.mark.parametrize("seeds", [2, 3])
def test_nothing_is_bold_where_an_interval_is_wider_than_the_difference(
    tmp_path: Path, seeds: int, spread: float, is_bold: bool
) -> None:
    """Means 80 and 90 %: with two seeds 5 points apart the interval is far wider than that."""
    made = [
        record(defense=d, seed=s, nat2=mean + spread * s, asr2=1 - mean - spread * s)
        for d, mean in (("none", 0.7), ("spectral", 0.8)) for s in range(seeds)
    ]  # fmt: skip
    found = bold(tmp_path / "s", made)
    assert [{"Nat2", "ASR2"} <= names for names in found] == [is_bold, is_bold]
    assert [bool({"Nat2", "ASR2"} & names) for names in found] == [is_bold, is_bold]


def test_the_largest_seed_has_its_place_in_every_table(tmp_path: Path) -> None:
    made = [record(seed=2**63 - 1 - n) for n in range(2)]
    sweep = read_sweep(write_sweep(tmp_path / "s", made))
    assert Report(sweep).facts.frame["seed"].tolist() == [2**63 - 1, 2**63 - 2]
    assert len(shown(tmp_path / "t", made)) == 2


def test_the_record_says_which_class_a_network_predicts_most_often() -> None:
    made = record(top_share1=0.5, top_class1="cat", clean_rate2=0.25)
    cell = parse(sealed(json.dumps(made)).encode())
    assert cell.top_class == {"top_class1": "cat"}
    assert (cell.numbers["top_share1"], cell.numbers["clean_rate2"]) == (0.5, 0.25)
