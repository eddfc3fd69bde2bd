"""Notes on networks that classify clean images too poorly, computed from the records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from backdoor_lab.compare.report import SweepReport
from backdoor_lab.results.sweeps import read_sweep
from backdoor_lab.tables.layout import PivotSpec
from backdoor_lab.tables.pivot import pivot_cells
from tests.helpers.records import PROTOCOL, failed, record, write_sweep

COUNTS = record()["counts"]
CELL = "pixel bird 5% seed 0"
DEFENDED = "pixel bird 5% spectral seed 0"
BEFORE = (
    "Neither the attack nor the defense can be judged by such a network: use more training images,"
    " more epochs, augmentation or a smaller network."
)
AFTER = "A low ASR2 of such a network does not mean that the defense removed the backdoor."


def measured_on(n_test: int, n_asr: int, asr_on: str = "not_target", **said: Any) -> dict[str, Any]:
    counts = {**COUNTS, "n_test": n_test, "n_asr": n_asr}
    return record(counts=counts, protocol={**PROTOCOL, "asr_on": asr_on}, **said)


def poor(folder: Path, made: list[dict[str, Any]]) -> list[str]:
    """The notes on poor networks, which are the same below the default tables and other ones."""
    sweep = read_sweep(write_sweep(folder, made))
    tables = [*SweepReport(sweep).tables]
    tables += pivot_cells(sweep.cells, PivotSpec(("defense",), ("trigger",), ("nat1", "asr2")))
    found = [[note for note in table.notes if " is poor (" in note] for table in tables]
    assert len(found) == 2
    assert found[0] == found[1]
    return found[0]


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (measured_on(60, 40, nat1=0.45, train_accuracy1=1.0),
         "Nat1 is as low as 45.0%, near chance (always predicting the same class gives 33.3%); Nat1"
         " is as low as 45.0% where 100.0% of the training images are classified correctly, so the"
         " network memorized them."),
        (record(nat1=0.6, train_accuracy1=0.95),
         "Nat1 is as low as 60.0% where 95.0% of the training images are classified correctly, so"
         " the network memorized them."),
        (measured_on(1000, 500, "source", nat1=0.53),
         "Nat1 is as low as 53.0%, near chance (always predicting the same class gives 50.0%)."),
        (record(nat1=0.9, nat2=0.7), "Nat2 is up to 20.0 percentage points below Nat1."),
        (record(nat1=0.95, nat2=0.15),
         "Nat2 is as low as 15.0%, near chance (always predicting the same class gives 10.0%); Nat2"
         " is up to 80.0 percentage points below Nat1."),
    ],
    ids=["a memorized folder of images", "memorized", "chance on the source class",
         "worse after the defense", "near chance after the defense"],
)  # fmt: skip
def test_a_poor_network_is_noted_below_every_table(
    tmp_path: Path, made: dict[str, Any], said: str
) -> None:
    when, where, worth = (
        ("before", CELL, BEFORE) if said.startswith("Nat1") else ("after", DEFENDED, AFTER)
    )
    assert poor(tmp_path / "s", [made]) == [
        f"The network {when} the defense is poor ({where}): {said} {worth}"
    ]


@pytest.mark.parametrize(
    "made",
    [
        record(), failed(measured_on(60, 40)), measured_on(1000, 900, nat1=0.25, nat2=0.22),
        measured_on(1000, 1000, "all", nat1=0.05, nat2=0.05),
        record(nat1=0.85, nat2=0.85, train_accuracy1=1.0, train_accuracy2=1.0),
        record(nat1=0.9, nat2=0.81), record(nat1=0.9, nat2=None, asr2=None),
    ],
    ids=["a good network", "a failed cell", "above chance", "chance unknown", "a usual gap",
         "slightly worse after the defense", "not retrained"],
)  # fmt: skip
def test_there_is_no_note_on_a_network_without_evidence_of_poor_accuracy(
    tmp_path: Path, made: dict[str, Any]
) -> None:
    assert poor(tmp_path / "s", [made]) == []


@pytest.mark.parametrize(("other", "noted"), [(0.69, True), (0.71, False)])
def test_a_large_difference_in_accuracy_between_seeds_is_noted(
    tmp_path: Path, other: float, noted: bool
) -> None:
    same = {"nat2": 0.8, "asr2": 0.0}
    made = [record(nat1=0.9, **same), record(nat1=other, seed=1, **same)]
    made.append(record(nat1=0.5, nat2=0.5, asr2=0.0, defense="none"))
    found = [note for note in poor(tmp_path / "s", made) if "before" in note]
    assert found == [
        f"The network before the defense is poor ({CELL}; pixel bird 5% seed 1): Nat1 differs by up"
        f" to 21.0 percentage points between seeds. {BEFORE}"
    ] * noted  # fmt: skip


def test_a_table_without_values_after_retraining_has_no_note_on_poor_retrained_networks(
    tmp_path: Path,
) -> None:
    sweep = read_sweep(write_sweep(tmp_path / "s", [record(nat1=0.9, nat2=0.2)]))
    (table,) = pivot_cells(sweep.cells, PivotSpec(("defense",), ("trigger",), ("nat1", "asr1")))
    assert not any(" is poor (" in note for note in table.notes)


@pytest.mark.parametrize(
    ("asr2", "clean_rate2", "counts", "noted"),
    [
        (0.30, 0.02, {"pois_left": 0}, True),
        (0.15, 0.02, {"pois_left": 0}, True),  # interval of the difference: 11.2 to 14.8 %
        (0.13, 0.02, {"pois_left": 0}, False),  # 9.3 to 12.7 %
        (0.30, 0.02, {"pois_left": 1}, False),
        (0.30, 0.02, {"pois_left": 0, "n_poisoned": 0}, False),
        (0.30, None, {"pois_left": 0}, False),
        (None, 0.02, {"pois_left": 0}, False),
    ],
    ids=["far above", "just above", "not far enough above", "poison left", "never poisoned",
         "clean rate unknown", "not retrained"],
)  # fmt: skip
def test_a_high_asr_without_any_poison_left_is_attributed_to_the_trigger(
    tmp_path: Path, asr2: float | None, clean_rate2: float | None, counts: dict[str, int],
    noted: bool,
) -> None:  # fmt: skip
    made = record(asr2=asr2, clean_rate2=clean_rate2, nat2=None if asr2 is None else 0.9,
                  counts={**COUNTS, "n_asr": 1800, **counts})  # fmt: skip
    sweep = read_sweep(write_sweep(tmp_path / "s", [made]))
    tables = [*SweepReport(sweep).tables]
    tables += pivot_cells(sweep.cells, PivotSpec(("defense",), ("trigger",), ("nat1", "asr2")))
    assert len(tables) == 2
    start = (
        f"No poisoned image was left in {DEFENDED}, but ASR2 is up to {asr2 or 0:.1%}: the trigger"
    )
    for table in tables:
        found = [note for note in table.notes if note.startswith("No poisoned image was left")]
        assert len(found) == noted
        assert all(note.startswith(start) for note in found)
    (table,) = pivot_cells(sweep.cells, PivotSpec(("defense",), ("trigger",), ("nat1", "asr1")))
    assert not any(note.startswith("No poisoned") for note in table.notes)


@pytest.mark.parametrize(
    ("said", "noted"),
    [
        ({"asr2": 0.15}, True),
        ({"asr2": 0.15, "clean_rate2": 0.12}, False),
        ({"asr2": 0.15, "counts": {**COUNTS, "n_asr": 720, "pois_left": 0}}, False),
        ({"asr2": 0.55}, False),
        ({"asr2": 0.15, "defense": "random"}, False),
        ({"asr2": 0.15, "counts": {**COUNTS, "n_asr": 30, "pois_left": 8}}, False),
        ({"asr2": 0.15, "clean_rate2": None}, False),
    ],
    ids=["far above", "near the clean rate", "no poison left", "more than half of ASR1",
         "a control", "few test images", "clean rate unknown"],
)  # fmt: skip
def test_a_backdoor_that_is_removed_only_in_part_is_noted(
    tmp_path: Path, said: dict[str, Any], noted: bool
) -> None:
    counts = {**COUNTS, "n_asr": 720, "pois_left": 8}
    made = record(**{"asr1": 0.99, "clean_rate2": 0.015, "nat2": 0.9, "counts": counts, **said})
    sweep = read_sweep(write_sweep(tmp_path / "s", [made]))
    expected = [
        f"ASR2 is lower than ASR1 in {DEFENDED}, but still up to 15.0%, where the clean rate is"
        " 1.5%: the backdoor is removed only in part."
    ]
    for table in SweepReport(sweep).tables:
        found = [note for note in table.notes if "only in part" in note]
        assert found == (expected if noted else [])


@pytest.mark.parametrize(
    ("said", "noted"),
    [
        ({"n_poisoned": 150, "pois_left": 75}, True),
        ({"n_poisoned": 150, "pois_left": 91}, False),
        ({"n_poisoned": 19, "pois_left": 9}, False),
    ],
    ids=["half", "less than 40 %", "few poisoned images"],
)
def test_a_budget_that_removes_much_poison_at_random_is_noted(
    tmp_path: Path, said: dict[str, int], noted: bool
) -> None:
    made = [record(defense=d, counts={**COUNTS, **said}, nat2=0.9, asr2=0.5)
            for d in ("spectral", "random")]  # fmt: skip
    for table in SweepReport(read_sweep(write_sweep(tmp_path / "s", made))).tables:
        found = [note for note in table.notes if "removing at random already" in note]
        assert len(found) == noted
        assert all("removed up to 50% of the poisoned images" in each for each in found)
