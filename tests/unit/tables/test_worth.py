"""Notes and marks for table figures that are not meaningful."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from backdoor_lab.compare.comparison import comparison_of
from backdoor_lab.compare.report import SweepReport
from backdoor_lab.results.metrics import MEASURE
from backdoor_lab.results.records import CellRecord, parse
from backdoor_lab.results.seal import sealed
from backdoor_lab.results.sweeps import read_sweep
from backdoor_lab.tables.layout import PivotSpec
from backdoor_lab.tables.learned import CleanNetworks, shows_attack, without_attack
from backdoor_lab.tables.markup import TextTable
from backdoor_lab.tables.notes import CONVERGED
from backdoor_lab.tables.pivot import pivot_cells
from backdoor_lab.tables.text import document, grids
from backdoor_lab.tables.writers import latex, sheet
from tests.helpers.records import PROTOCOL, failed, record, write_sweep

RECORD = record()
LAYOUT = PivotSpec(("defense",), ("trigger",), ("nat2", "asr2"))


def shown(folder: Path, made: list[dict[str, Any]]) -> list[Any]:
    """The tables of a sweep in the layout of the report and in a requested layout."""
    sweep = read_sweep(write_sweep(folder, made))
    found = [grid for table in SweepReport(sweep).tables for grid in grids(table)[:1]]
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
        (counted(n_asr=3), "Fewer than 30 images: ASR is measured on 3 test images (pixel bird 5%"),
        (counted(n_test=29), "Fewer than 30 images: Nat is measured on 29 test images"),
        (record(top_share1=0.97, top_class1="cat"),
         "The network before the defense predicts one class (cat) for more than 90% of the clean"
         " test images (pixel bird 5% seed 0): Nat1 and ASR1 are not meaningful."),
        (record(top_share2=0.91, top_class2="dog"),
         "The network after the defense predicts one class (dog) for more than 90% of the clean"
         " test images (pixel bird 5% spectral seed 0): Nat2 and ASR2 are not meaningful."),
        (record(asr1=0.1, clean_rate1=0.1),
         "ASR1 is not significantly higher than the clean rate, which is the share of the same test"
         " images classified as the target without the trigger (up to 10.00 %), judged by the 95 %"
         " Newcombe interval of the difference, in pixel bird 5% seed 0"),
        (counted(n_removed=0), "retraining uses another seed (retrain_seed=same uses the seed of"),
    ],
    ids=["few ASR images", "few test images", "one class predicted before the defense",
         "one class predicted after the defense", "ASR1 equal to the clean rate",
         "nothing removed"],
)  # fmt: skip
def test_both_default_and_requested_tables_have_a_note_on_meaningless_values(
    tmp_path: Path, made: dict[str, Any], said: str
) -> None:
    assert [said in text for text in notes(tmp_path / "s", [made])] == [True, True]


def fitted(number: str, *accuracies: float, clean: float | None = None) -> list[dict[str, Any]]:
    """Records with these training accuracies, one per seed, and optionally one of a clean
    network."""
    figure = f"train_accuracy{number}"
    made = [record(seed=seed, **{figure: value}) for seed, value in enumerate(accuracies)]
    nothing = {**RECORD["counts"], "n_poisoned": 0, "n_removed": 1}
    if clean is not None:
        made.append(record(ratio=0, counts=nothing, **{figure: clean}))
    return made


@pytest.mark.parametrize(
    ("made", "name", "marked"),
    [
        (fitted("1", 0.90, 0.879), "nat1", True),  # compared with the best of the same ratio
        (fitted("1", 0.90, 0.881), "nat1", False),
        (fitted("1", 0.90), "nat1", False),  # nothing to compare it with
        (fitted("1", 0.90, clean=0.93), "nat1", True),
        (fitted("1", 0.95, 0.92, clean=0.93), "nat1", False),
        (fitted("2", 0.90, clean=0.93), "nat2", True),
        (fitted("2", 0.92, clean=0.93), "nat2", False),
    ],
    ids=["far below the best of its ratio", "slightly below the best of its ratio",
         "nothing to compare with", "below a clean network",
         "above and slightly below a clean network", "below a clean network after the defense",
         "slightly below a clean network after the defense"],
)  # fmt: skip
def test_an_unconverged_network_is_marked_in_default_and_requested_tables(
    tmp_path: Path, made: list[dict[str, Any]], name: str, marked: bool
) -> None:
    sweep = read_sweep(write_sweep(tmp_path / "s", made))
    layout = PivotSpec(("target",), ("ratio",), ("nat1", "nat2"))
    found = [grids(table)[0] for table in SweepReport(sweep).tables]
    found += [grid for table in pivot_cells(sweep.cells, layout) for grid in grids(table)]
    assert len(found) == 2
    for grid in found:
        signed = {head for row in grid.rows for head, text in zip(grid.head, row, strict=True)
                  if "†" in text}  # fmt: skip
        assert signed == ({MEASURE[name].head} if marked else set())
        assert any(note.startswith("† The network") for note in grid.notes) == marked


@pytest.mark.parametrize(
    ("asr1", "clean", "rate", "marked"),
    [
        (0.30, 0.30, None, True),
        (0.33, 0.30, None, True),  # interval of the difference, 1,800 images: -0.03 to 6.03 %
        (0.34, 0.30, None, False),
        (0.30, None, 0.30, True),
        (0.33, None, 0.30, True),
        (0.34, None, 0.30, False),
        (0.30, None, None, False),  # nothing to compare it with
        (0.30, 0.40, 0.10, True),  # a clean network takes precedence over the clean rate
        (0.30, 0.20, 0.35, False),
    ],
)
def test_an_asr_not_significantly_above_that_of_a_clean_network_is_marked_in_every_table(
    tmp_path: Path, asr1: float, clean: float | None, rate: float | None, marked: bool
) -> None:
    made = [record(asr1=asr1, asr2=0.25, **({} if rate is None else {"clean_rate1": rate}))]
    if clean is not None:
        made.append(clean_network(asr1=clean))
    grids_of_both = whole(tmp_path / "s", made)
    assert len(grids_of_both) == 2
    for grid in grids_of_both:
        signed = {head for row in grid.rows for head, text in zip(grid.head, row, strict=True)
                  if "‡" in text}  # fmt: skip
        assert signed == ({"ASR1", "ASR2"} if marked else set())
        said = [n for n in grid.notes if n.startswith("‡ ASR1 is not significantly higher than")]
        assert len(said) == marked
        of_network = "that of a network trained without poison" in " ".join(said)
        assert of_network == (marked and clean is not None)


def one_of(hits: int, n: int, rate: float, *, poisoned: int = 50, **said: Any) -> CellRecord:
    """A cell with ASR1 = `hits` / `n`; without `n`, the number of test images is unknown."""
    counts = {"n_poisoned": poisoned} | ({"n_asr": n} if n else {})
    made = record(counts=counts, asr1=hits / (n or 120), clean_rate1=rate, **said)
    return parse(sealed(json.dumps(made)).encode())


@pytest.mark.parametrize(
    ("hits", "clean", "shown"),
    [
        (1, 0, False),  # -2.3 to 4.6 %
        (4, 0, False),  # -0.4 to 8.3 %
        (5, 0, True),  # 0.3 to 9.4 %
        (60, 0, True),  # 40.7 to 58.8 %
        (0, 0, False), (60, 60, False), (120, 120, False),
        (60, 66, False),
    ],
)  # fmt: skip
def test_an_attack_counts_as_effective_if_the_interval_of_the_rate_difference_is_above_0(
    hits: int, clean: int, shown: bool
) -> None:
    """Both rates are measured on 120 images. The Wilson intervals of 0, 1, 4, 5 and 60 of 120 are 0
    to 3.10 %, 0.15 to 4.57 %, 1.30 to 8.26 %, 1.79 to 9.38 % and 41.19 to 58.81 %."""
    cell = one_of(hits, 120, clean / 120)
    assert shows_attack([cell], CleanNetworks.among([])) == shown
    network = one_of(clean, 120, 1.0, poisoned=0, ratio=0)
    assert shows_attack([cell], CleanNetworks.among([network])) == shown


def test_several_clean_networks_do_not_count_the_same_test_images_more_than_once() -> None:
    networks = [one_of(hits, 120, 0.0, poisoned=0, seed=seed) for seed, hits in enumerate((0, 2))]
    clean = CleanNetworks.among(networks * 5)
    assert clean.expected(one_of(5, 120, 0.0)) == (1 / 120, 120)
    assert not shows_attack([one_of(5, 120, 0.0)], clean)
    assert shows_attack([one_of(8, 120, 0.0)], clean)


def test_a_rate_of_an_unknown_number_of_images_is_taken_as_exact() -> None:
    network = one_of(0, 0, 0.0, poisoned=0)
    for hits, marked in ((0, True), (1, False)):
        for n in (0, 120):
            cell = one_of(hits, n, 0.0)
            clean = CleanNetworks.among([network])
            assert (without_attack([cell], clean) == [cell]) == marked


@pytest.mark.parametrize("report", [True, False], ids=["report", "wide"])
@pytest.mark.parametrize(
    ("asr1", "marked", "unmarked"),
    [((0.1, 0.1), True, False), ((0.9, 0.1), False, True), ((0.9, 0.9), None, None)],
    ids=["no seed shows an attack", "one seed shows an attack", "every seed shows an attack"],
)
def test_the_note_on_ineffective_attacks_has_a_footnote_mark_only_if_a_value_has_that_mark(
    tmp_path: Path, report: bool, asr1: tuple[float, ...], marked: bool | None,
    unmarked: bool | None,
) -> None:  # fmt: skip
    made = [record(seed=seed, asr1=value, clean_rate1=0.1) for seed, value in enumerate(asr1)]
    grid = whole(tmp_path / "s", made)[not report]
    assert any("‡" in text for row in grid.rows for text in row) == bool(marked)
    said = [note for note in grid.notes if "ASR1 is not significantly higher than" in note]
    only = "Figures are marked ‡ only where none of their seeds shows an attack."
    assert [(note.startswith("‡ "), note.endswith(only)) for note in said] == (
        [] if marked is None else [(marked, unmarked)]
    )


def test_a_note_has_a_footnote_mark_only_if_the_table_shows_the_measure_of_the_note(
    tmp_path: Path,
) -> None:
    made = [*fitted("1", 0.90, 0.85, clean=0.95), record(target="cat", asr1=0.1, clean_rate1=0.1)]
    cells = read_sweep(write_sweep(tmp_path / "s", made)).cells
    for value, signs in (("nat1", {"†"}), ("asr1", {"‡"}), ("pois_left", set())):
        (table,) = pivot_cells(cells, PivotSpec(("target",), ("ratio",), (value,)))
        said = [note for note in table.notes
                if "did not converge" in note or "not significantly higher" in note]  # fmt: skip
        assert len(said) == 2
        assert {note[0] for note in said if note[1] == " "} == signs, value


def test_a_note_below_tables_in_the_layout_of_the_report_defines_pois_left(tmp_path: Path) -> None:
    (table,) = SweepReport(read_sweep(write_sweep(tmp_path / "s", [record()]))).tables
    assert any("#Pois Left: those not removed by the defense." in each for each in table.notes)


def test_a_clean_network_in_another_table_is_used_for_comparison(tmp_path: Path) -> None:
    """A network trained with another recipe or evaluated with another trigger is not used."""
    made = [record(asr1=0.3, train_accuracy1=0.9)]
    layout = PivotSpec(("target",), (), ("nat1", "asr1"))
    for name, other, signs in (
        ("same", clean_network(asr1=0.3, train_accuracy1=0.95), {"†", "‡"}),
        ("recipe", clean_network(asr1=0.3, train_accuracy1=0.95, recipe="long"), set()),
        ("trigger", clean_network(asr1=0.3, train_accuracy1=0.95, trigger="pattern"), {"†"}),
    ):
        sweep = read_sweep(write_sweep(tmp_path / name, [*made, other]))
        grid = grids(pivot_cells(sweep.cells, layout)[0])[0]
        assert {text[-1] for text in grid.rows[0]} & {"†", "‡"} == signs, name


def test_latex_tables_write_footnote_marks_as_commands(tmp_path: Path) -> None:
    made = [record(asr1=0.01, train_accuracy1=0.9), clean_network(asr1=0.3, train_accuracy1=0.95)]
    (table,) = SweepReport(read_sweep(write_sweep(tmp_path / "s", made))).tables
    text = latex(document(table))
    assert r" & 1.00 \ddag{} & " in text
    assert r"\dag{} The network before the defense" in text
    assert r"\ddag{} ASR1 is not significantly higher than" in text
    assert not any(code in text for code in ("U+2020", "U+2021"))


def test_a_cell_without_poison_has_no_warning_mark(tmp_path: Path) -> None:
    made = [clean_network(asr1=0.1, clean_rate1=0.1), failed(record())]
    texts = [text for grid in whole(tmp_path / "s", made) for row in grid.rows for text in row]
    assert "failed: oom" in texts
    assert not any("‡" in text for text in texts)


def test_the_convergence_remark_of_the_report_is_shown_only_next_to_published_values(
    tmp_path: Path,
) -> None:
    sweep = read_sweep(write_sweep(tmp_path / "s", [record()]))
    compared = grids(SweepReport(sweep).tables[0])[1]
    said = [note for note in compared.notes if "had to change training parameters to conv" in note]
    assert len(said) == 1
    assert CONVERGED in comparison_of([sweep], report=True).notes
    other = read_sweep(write_sweep(tmp_path / "t", [record(target="cat")]))
    assert not any(CONVERGED in grid.notes for grid in grids(SweepReport(other).tables[0]))


def clean_network(recipe: str = "demo", **said: Any) -> dict[str, Any]:
    counts = {**RECORD["counts"], "n_poisoned": 0}
    return record(ratio=0, counts=counts, choices={"recipe": recipe}, id="clean", **said)


def whole(folder: Path, made: list[dict[str, Any]]) -> list[TextTable]:
    """The tables of a sweep in the layout of the report and in a layout with Nat and ASR."""
    sweep = read_sweep(write_sweep(folder, made))
    layout = PivotSpec(("target",), ("ratio",), ("nat1", "asr1", "nat2", "asr2"))
    tables = [*SweepReport(sweep).tables, *pivot_cells(sweep.cells, layout)]
    return [grids(table)[0] for table in tables]


@pytest.mark.parametrize(
    "made",
    [
        counted(n_asr=30, n_test=30), record(top_share1=0.9, top_class1="cat", top_share2=0.5),
        record(asr1=0.13, clean_rate1=0.1), RECORD, failed(counted(n_asr=3)), counted(n_removed=1),
        record(counts={**RECORD["counts"], "n_removed": 0}, config={"retrain_seed": "same"}),
        record(counts={**RECORD["counts"], "n_removed": 0}, nat2=None, asr2=None),
        record(counts={**RECORD["counts"], "n_removed": 0}, run={"stages": {"repair": {}}}),
    ],
    ids=["enough images", "no class predicted for most images", "ASR1 above the clean rate",
         "older record", "failed cell", "one image removed", "retrained with the same seed",
         "not retrained", "repaired"],
)  # fmt: skip
def test_meaningful_values_and_older_records_have_no_warning_note(
    tmp_path: Path, made: dict[str, Any]
) -> None:
    words = ("Fewer than 30", "predicts one class", "no higher than", "uses another seed")
    assert not [w for text in notes(tmp_path / "s", [made]) for w in words if w in text]


def test_a_note_names_at_most_three_cells_or_states_that_it_applies_to_every_cell(
    tmp_path: Path,
) -> None:
    made = [record(target=f"t{n}", ratio=r, top_share1=0.99 if r > 0.1 else 0.2, top_class1=f"c{n}")
            for n in range(5) for r in (0.05, 0.2)]  # fmt: skip
    text = notes(tmp_path / "some", made)[0]
    assert "(pixel t0 20% seed 0; pixel t1 20% seed 0; pixel t2 20% seed 0; 2 more)" in text
    text = notes(tmp_path / "all", [one for one in made if one["top_share1"] > 0.9])[0]
    assert (
        "one class (c0, c1, c2, c3, c4) for more than 90% of the clean test images (every" in text
    )


def test_an_attack_with_several_defenses_is_named_only_once_in_a_note(tmp_path: Path) -> None:
    made = [record(defense=d, top_share1=0.99, top_class1="cat") for d in ("spectral", "none")]
    text = notes(tmp_path / "s", [*made, record(target="dog")])[0]
    assert "(pixel bird 5% seed 0):" in text


def test_a_ratio_counted_in_images_is_shown_without_a_percent_sign(tmp_path: Path) -> None:
    made = record(ratio=500, protocol={**PROTOCOL, "ratio_of": "count"}, clean_rate1=1.0)
    assert (
        "pixel bird 500 seed 0: there is no measurable attack" in notes(tmp_path / "s", [made])[0]
    )


def bold(folder: Path, made: list[dict[str, Any]]) -> list[set[str]]:
    return [{grid.head[column] for _, column in grid.best} for grid in shown(folder, made)]


def against(none: dict[str, Any], spectral: dict[str, Any], **both: Any) -> list[dict[str, Any]]:
    """Three seeds of two defenses. Their difference varies between seeds."""
    return [
        record(defense=d, seed=s, **{k: v + n * s * s / 1e4 for k, v in each.items()}, **both)
        for n, (d, each) in enumerate((("none", none), ("spectral", spectral)))
        for s in range(3)
    ]


@pytest.mark.parametrize(
    "both",
    [
        {"asr1": 0.1, "clean_rate1": 0.1},
        {"asr1": 0.05, "clean_rate1": 0.1},
        {"counts": {**RECORD["counts"], "n_poisoned": 0}},
    ],
)
def test_asr2_is_never_bold_if_asr1_shows_no_attack(tmp_path: Path, both: dict[str, Any]) -> None:
    values = {"asr2": 0.09, "nat2": 0.9}, {"asr2": 0.01, "nat2": 0.95}
    found = bold(tmp_path / "none", against(*values, **both))
    assert ["ASR2" in names for names in found] == [False, False]
    assert ["Nat2" in names for names in found] == [True, True]
    found = bold(tmp_path / "one", against(*values, asr1=0.9, clean_rate1=0.1))
    assert ["ASR2" in names for names in found] == [True, True]


def two(first: Sequence[float], second: Sequence[float]) -> list[dict[str, Any]]:
    """Nat2 of two defenses by seed."""
    return [
        record(defense=d, seed=s, nat2=v, asr2=None)
        for d, values in (("none", first), ("spectral", second)) for s, v in enumerate(values)
    ]  # fmt: skip


@pytest.mark.parametrize("shift", [0.0, 0.01, 0.03])
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_a_value_is_bold_if_and_only_if_the_paired_t_test_of_scipy_is_significant(
    tmp_path: Path, seeds: int, shift: float
) -> None:
    draw = np.random.default_rng(seeds)
    for turn in range(4):
        first = draw.uniform(0.5, 0.8, seeds).round(4)
        second = (first + shift + draw.normal(0, 0.01, seeds)).round(4)
        p = stats.ttest_rel(first, second).pvalue
        found = bold(tmp_path / str(turn), two(first.tolist(), second.tolist()))
        assert [{"Nat2"} == names for names in found] == [p < 0.05] * 2


def test_a_consistent_difference_is_bold_even_if_intervals_overlap(tmp_path: Path) -> None:
    first, second = (0.5, 0.7, 0.9), (0.51, 0.712, 0.911)
    assert bold(tmp_path / "s", two(first, second)) == [{"Nat2"}] * 2
    # The same figures, paired in another order.
    assert bold(tmp_path / "t", two(first, second[::-1])) == [set()] * 2


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((0.5,), (0.9,)),
        ((0.5, 0.6, 0.7), (0.9, 0.91)),
        ((0.5, 0.6, 0.7), (0.6, 0.7, 0.8)),
        ((0.5, 0.6, 0.7), (0.5, 0.6, 0.7)),
    ],
    ids=["one seed", "an unpaired seed", "a constant difference", "no difference"],
)
def test_no_value_is_bold_if_the_paired_test_is_undefined(
    tmp_path: Path, first: Sequence[float], second: Sequence[float]
) -> None:
    assert bold(tmp_path / "s", two(first, second)) == [set()] * 2


def test_a_failed_seed_enters_neither_the_paired_test_nor_the_mean(tmp_path: Path) -> None:
    made = two((0.5, 0.6, 0.7), (0.9, 0.91, 0.95))
    made[5] = failed(made[5])
    report, wide = shown(tmp_path / "s", made)
    assert not report.best
    assert not wide.best
    assert report.rows[1][-2:] == ["2", "2 done, 1 failed: oom"]
    assert report.rows[1][7].startswith("90.50 ± ")
    assert wide.rows[1][1].startswith("90.50 ± ")
    assert wide.rows[1][1].endswith("(n=2)")
    assert all(grid.notes[-1].endswith("2 to 3 seeds.") for grid in (report, wide))


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (two((0.5,), (0.9,)), "all values are from one seed, so no test was made."),
        (two((0.5, 0.6), (0.9, 0.8)), "2 seeds."),
        ([record(seed=s) for s in range(3)], "no two values compete, so no test was made. 3 se"),
    ],
    ids=["two defenses with one seed", "two defenses with two seeds", "one defense"],
)
def test_a_note_below_every_table_states_the_significance_test_and_the_number_of_seeds(
    tmp_path: Path, made: list[dict[str, Any]], said: str
) -> None:
    found = shown(tmp_path / "s", made)
    assert len(found) == 2
    for grid in found:
        assert sum(note.startswith(("Bold: ", "Nothing is bold")) for note in grid.notes) == 1
        assert said in grid.notes[-1]


def test_rates_of_single_runs_have_wilson_intervals_below_the_table_and_in_csv(
    tmp_path: Path,
) -> None:
    made = [record(target="bird", nat1=0.9, asr1=0.0), record(target="dog", nat1=0.98, asr1=1.0)]
    sweep = read_sweep(write_sweep(tmp_path / "s", made))
    (table,) = SweepReport(sweep).tables
    wide = pivot_cells(sweep.cells, PivotSpec(("target",), (), ("nat1", "asr1")))
    for each in (table, *wide):
        lines = list(csv.DictReader(io.StringIO(sheet(document(each)))))
        for line, one in zip(lines, made, strict=True):
            for name, n in (("nat1", 2000), ("asr1", 1800)):
                interval = stats.binomtest(round(one[name] * n), n).proportion_ci(method="wilson")
                found = [float(line[f"{name}_wilson_{side}"]) / 100 for side in ("low", "high")]
                assert found == pytest.approx([interval.low, interval.high], abs=1e-9)
                assert line[f"{name}_std"] == line[f"{name}_ci95"] == ""
        (note,) = [note for note in each.notes if "Wilson" in note]
        assert "Nat1 88.61 to 91.24, ASR1 " in note


def test_several_seeds_have_a_standard_deviation_but_no_wilson_interval(tmp_path: Path) -> None:
    made = [record(seed=s, nat1=v) for s, v in enumerate((0.9, 0.93, 0.91))]
    (table,) = SweepReport(read_sweep(write_sweep(tmp_path / "s", made))).tables
    (line,) = csv.DictReader(io.StringIO(sheet(document(table))))
    assert float(line["nat1_std"]) == pytest.approx(np.std([90, 93, 91], ddof=1))
    assert line["nat1_wilson_low"] == line["nat1_wilson_high"] == ""
    assert not any("Wilson" in note for note in table.notes)


def test_the_largest_seed_is_shown_exactly_in_every_table(tmp_path: Path) -> None:
    made = [record(seed=2**63 - 1 - n) for n in range(2)]
    sweep = read_sweep(write_sweep(tmp_path / "s", made))
    assert SweepReport(sweep).facts.frame["seed"].tolist() == [2**63 - 1, 2**63 - 2]
    assert len(shown(tmp_path / "t", made)) == 2


def test_the_most_predicted_class_is_read_from_the_record() -> None:
    made = record(top_share1=0.5, top_class1="cat", clean_rate2=0.25)
    cell = parse(sealed(json.dumps(made)).encode())
    assert cell.top_class == {"top_class1": "cat"}
    assert (cell.numbers["top_share1"], cell.numbers["clean_rate2"]) == (0.5, 0.25)
