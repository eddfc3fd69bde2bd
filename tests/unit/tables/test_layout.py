"""Figures of tables against a second computation, and the layout, order and splitting of tables."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

import pytest

from backdoor_lab.analysis.intervals import half_width, t_quantile
from backdoor_lab.compare.comparison import against_random
from backdoor_lab.compare.report import SweepReport
from backdoor_lab.results.sweeps import read_sweep
from backdoor_lab.tables import reference
from backdoor_lab.tables.layout import PivotSpec
from backdoor_lab.tables.notes import EVERY_CLASS
from backdoor_lab.tables.pivot import PivotTable, pivot_cells
from backdoor_lab.tables.text import document, grids
from backdoor_lab.tables.writers import markdown
from tests.helpers.records import GRID, PROTOCOL, failed, record, write_sweep

SEEDS = range(4)


def tables(folder: Path, made: list[dict[str, Any]], asked: Any = None) -> list[PivotTable]:
    return SweepReport(read_sweep(write_sweep(folder / "s", made, asked))).tables


def test_t_quantile_equals_that_of_scipy() -> None:
    scipy_stats = pytest.importorskip("scipy.stats")
    for freedom in [*range(1, 40), 99, 1000]:
        expected = scipy_stats.t.ppf(0.975, freedom)
        assert math.isclose(t_quantile(freedom), expected, rel_tol=1e-10)
    values = [0.91, 0.94, 0.89, 0.93]
    low, high = scipy_stats.t.interval(
        0.95, 3, loc=statistics.mean(values), scale=scipy_stats.sem(values)
    )
    half = half_width(statistics.stdev(values), 4)
    assert half is not None
    assert math.isclose(half, (high - low) / 2, rel_tol=1e-10)
    assert half_width(float("nan"), 1) is None


def test_means_and_intervals_match_an_independent_computation(tmp_path: Path) -> None:
    scipy_stats = pytest.importorskip("scipy.stats")
    made = [record(*cell, seed=seed) for cell in GRID for seed in SEEDS]
    made[2] = failed(made[2])
    made[5]["nat1"] = float("nan")
    found_tables = tables(tmp_path, made)
    assert [len(table.cells) for table in found_tables] == [6, 6]
    for table in found_tables:
        for ((target, ratio, _), _), row in table.cells.items():
            mine = [
                m for m in made
                if f"trigger {m['choices']['trigger']}" == table.title
                and m["choices"]["target"] == target
                and f"{100 * m['choices']['ratio']:g}%" == ratio and m["status"] == "done"
            ]  # fmt: skip
            assert row.done == len(mine)
            assert row.asked == len(SEEDS)
            for name, scale in (("nat1", 100), ("asr2", 100), ("pois_left", 1)):
                values = [scale * (m.get(name, m["counts"].get(name))) for m in mine]
                values = [value for value in values if math.isfinite(value)]
                n, found = len(values), row.estimates[name]
                half = scipy_stats.t.ppf(0.975, n - 1) * statistics.stdev(values) / math.sqrt(n)
                assert found.n == n
                assert math.isclose(found.mean, statistics.mean(values))
                assert found.half is not None
                assert math.isclose(found.half, half, abs_tol=1e-12)


def test_tables_of_the_demo_have_the_layout_of_the_published_report(tmp_path: Path) -> None:
    made = [record(*cell) for cell in GRID]
    for number, one in enumerate(made):
        one.update(nat1=0.9231, asr1=0.7912, nat2=0.9254, asr2=0.0)
        one["counts"]["pois_left"] = number
    found = tables(tmp_path, made)
    assert [(t.title, t.slug, len(t.rows)) for t in found] == [
        ("trigger pixel", "pixel", 6),
        ("trigger pattern", "pattern", 6),
    ]
    assert markdown(document(found[0])).split("\n- ")[0] == GOLDEN
    assert (
        markdown(document(found[0]))
        .split("\n\n")[2]
        .startswith("- Protocol group13@1: apply_trigger=before_augmentation, ")
    )
    assert "dataset synthetic; model resnet18-w16; recipe demo" in markdown(document(found[0]))


GOLDEN = """\
### trigger pixel

| Target | Ratio | #Pois |  Nat1 |  ASR1 | #Pois Left |  Nat2 | ASR2 |
| ------ | ----- | ----: | ----: | ----: | ---------: | ----: | ---: |
| bird   | 5%    |    50 | 92.31 | 79.12 |          0 | 92.54 | 0.00 |
| bird   | 10%   |   100 | 92.31 | 79.12 |          1 | 92.54 | 0.00 |
| dog    | 5%    |    50 | 92.31 | 79.12 |          2 | 92.54 | 0.00 |
| dog    | 10%   |   100 | 92.31 | 79.12 |          3 | 92.54 | 0.00 |
| horse  | 5%    |    50 | 92.31 | 79.12 |          4 | 92.54 | 0.00 |
| horse  | 10%   |   100 | 92.31 | 79.12 |          5 | 92.54 | 0.00 |
"""


def test_values_of_the_published_report_are_shown_next_to_those_of_the_sweep(
    tmp_path: Path,
) -> None:
    one = record(nat1=0.9331, asr1=0.7912, nat2=0.9, asr2=0.01)
    one["counts"]["pois_left"] = 3
    (table,) = tables(tmp_path, [one, record(target="cat"), record(defense="none")])
    compared = grids(table)[1]
    assert compared.rows == [
        ["bird", "5%", "spectral", "92.31", "+1.00", "79.12", "+0.00", "0", "+3", "92.54", "-2.54",
         "0.00", "+1.00"]
    ]  # fmt: skip
    assert "trends and is not a reproduction" in compared.notes[0]
    same = record(choices={"dataset": "cifar10", "model": "resnet18"})
    (table,) = tables(tmp_path / "part", [same])
    assert "cifar10 with resnet18 on 10,000 training images" in grids(table)[1].notes[0]
    assert "not a reproduction" in grids(table)[1].notes[0]
    same["counts"]["n_train"] = 50_000 + same["counts"]["n_poisoned"]
    (table,) = tables(tmp_path / "same", [same])
    assert "same data set and network" in grids(table)[1].notes[0]
    assert "not a reproduction" not in grids(table)[1].notes[0]


def test_the_reference_values_cover_the_twelve_cells_of_the_published_report() -> None:
    assert all(reference.lookup(*cell) for cell in GRID)
    assert reference.lookup("pattern", "bird", 0.05) == {
        "nat1": 92.24, "asr1": 79.64, "pois_left": 38, "nat2": 92.42, "asr2": 2.05
    }  # fmt: skip
    assert reference.lookup("pixel", "cat", 0.05) is reference.lookup("blend", "dog", 0.1) is None
    assert reference.lookup("pixel", "bird", 0.050001) is None


@pytest.mark.parametrize(
    ("defense", "count"),
    [("spectral", 1), ("spectral_plus", 0), ("abl", 0), ("none", 0), ("oracle", 0)],
)
def test_only_spectral_signatures_are_compared_with_the_report(
    tmp_path: Path, defense: str, count: int
) -> None:
    """A note below the table names the defense."""
    (table,) = tables(tmp_path, [record(defense=defense)])
    assert len(table.compared) == count
    assert any(f"; defense {defense};" in note for note in table.notes)


def test_failed_and_missing_seeds_are_counted_in_the_status(tmp_path: Path) -> None:
    asked = [record(seed=seed) for seed in SEEDS] + [record(target="dog", seed=s) for s in SEEDS]
    made = [asked[0], asked[1], failed(asked[2]), asked[4]]
    (table,) = tables(tmp_path, made, asked)
    grid = grids(table)[0]
    assert grid.head[-2:] == ["Seeds", "Status"]
    assert grid.rows[0][-2:] == ["2", "2 done, 1 failed: oom, 1 missing"]
    assert grid.rows[1][-2:] == ["1", "1 done, 3 missing"]
    assert "±" not in "".join(grid.rows[1])


@pytest.mark.parametrize("status", ["failed: oom", "diverged: loss is NaN", "missing"])
def test_a_cell_without_values_is_shown_as_a_row_of_dashes(tmp_path: Path, status: str) -> None:
    asked = [record(), record(target="dog")]
    made = asked[1:] + ([] if status == "missing" else [failed(asked[0], status)])
    (table,) = tables(tmp_path, made, asked)
    assert grids(table)[0].rows[0] == ["bird", "5%", *["–"] * 6, status]
    assert grids(table)[0].rows[1][-1] == "done"


def test_values_of_an_unfinished_cell_are_not_part_of_the_mean(tmp_path: Path) -> None:
    made = [record(nat1=0.9), record(seed=1, nat1=0.1, status="failed: oom in retrain")]
    (table,) = tables(tmp_path, made)
    (cell,) = table.cells.values()
    assert cell.estimates["nat1"].mean == 90
    assert cell.estimates["nat1"].n == cell.done == 1


def test_a_value_from_only_one_of_several_seeds_is_shown_with_n_equal_to_1(
    tmp_path: Path,
) -> None:
    made = [record(seed=seed, asr2=None) for seed in range(3)]
    made[1]["asr2"] = 0.02
    (table,) = tables(tmp_path, made)
    assert grids(table)[0].rows[0][7] == "2.00 (n=1)"
    assert any(note.endswith("n= marks figures from fewer seeds.") for note in table.notes)
    made[0]["asr2"] = made[2]["asr2"] = 0.02
    (whole,) = tables(tmp_path, made)
    assert any(note.endswith("beyond 0 or 100.") for note in whole.notes)


def test_a_note_says_that_no_cell_of_a_protocol_is_done_yet(tmp_path: Path) -> None:
    unrecorded = record(protocol={}, config={})
    (tmp_path / "open").mkdir()
    (open_,) = tables(tmp_path / "open", [], [unrecorded])
    assert open_.notes[0] == "Protocol group13@1: no cell is done yet."
    (done,) = tables(tmp_path / "done", [unrecorded])
    assert done.notes[0] == "Protocol group13@1: values not recorded."


def test_intervals_of_a_mean_are_not_clipped_to_0_or_100_percent(tmp_path: Path) -> None:
    (table,) = tables(tmp_path, [record(seed=s, asr2=v) for s, v in enumerate((0.0, 0.0, 0.03))])
    found = table.cells[table.rows[0], ()].estimates["asr2"]
    assert found.half is not None
    assert found.mean - found.half < 0
    assert any("not clipped" in note for note in table.notes)


@pytest.mark.parametrize("name", ["dataset", "model", "recipe", "source", "protocol"])
def test_cells_that_differ_in_any_other_choice_are_in_separate_tables(
    tmp_path: Path, name: str
) -> None:
    made = [record(choices={name: value}, id=value) for value in ("one", "two")]
    found = tables(tmp_path, made)
    assert [t.title for t in found] == [f"trigger pixel, {name} {each}" for each in ("one", "two")]
    assert [t.slug for t in found] == ["pixel-one", "pixel-two"]


def test_protocols_with_the_same_name_but_different_values_have_separate_tables(
    tmp_path: Path,
) -> None:
    other = {**PROTOCOL, "ratio_of": "all"}
    made = [record(), record(seed=1, protocol=other, id="other")]
    found = tables(tmp_path, made)
    assert [t.title for t in found] == [
        "trigger pixel, protocol.ratio_of target", "trigger pixel, protocol.ratio_of all"
    ]  # fmt: skip
    assert "ratio_of=all" in found[1].notes[0]


def test_cells_with_different_config_values_are_not_averaged(tmp_path: Path) -> None:
    made = [record(), record(config={"recipe": {"lr": 0.01}, "seed": 0}, id="other")]
    found = tables(tmp_path, made)
    assert [t.title for t in found] == [
        "trigger pixel, config recipe.lr 0.1", "trigger pixel, config recipe.lr 0.01"
    ]  # fmt: skip
    assert all(cell.asked == 1 for table in found for cell in table.cells.values())


def budgets(**defense: Any) -> list[dict[str, Any]]:
    """Two cells that differ in the filter's budget, as recorded for either way to set it: the
    protocol and the options of the defense both state it."""
    return [
        record(id=f"c{n}", protocol={**PROTOCOL, "removal_budget": budget},
               config={"defense": {"removal_budget": budget, **defense}})
        for n, budget in enumerate(("1.5eps", "15%"))
    ]  # fmt: skip


def test_a_title_names_a_filter_option_once(tmp_path: Path) -> None:
    found = tables(tmp_path, budgets())
    budget = "trigger pixel, protocol.removal_budget"
    assert [table.title for table in found] == [f"{budget} 1.5eps", f"{budget} 15%"]
    assert not any("defense.removal_budget" in note for table in found for note in table.notes)
    cells = read_sweep(tmp_path / "s").cells
    for name in ("protocol.removal_budget", "config.defense.removal_budget"):
        (table,) = pivot_cells(cells, PivotSpec(columns=(name,)))
        assert table.columns == [("1.5eps",), ("15%",)]


def test_a_title_names_the_option_of_a_nested_filter_only_if_the_protocol_does_not(
    tmp_path: Path,
) -> None:
    made = budgets()
    for one in made:
        one["config"]["defense"]["like"] = {"removal_budget": one["protocol"]["removal_budget"]}
    assert "like" not in tables(tmp_path, made)[0].title
    made[0]["config"]["defense"]["like"]["removal_budget"] = "p85"
    assert "config defense.like.removal_budget p85" in tables(tmp_path / "b", made)[0].title


def test_an_unset_layer_of_a_defense_is_not_named_beside_the_layer_of_the_protocol(
    tmp_path: Path,
) -> None:
    def titles(folder: str, *layers: tuple[str | None, str]) -> list[str]:
        made = [
            record(id=f"c{n}", protocol={**PROTOCOL, "layer": shown},
                   config={"defense": {"layer": given}, "protocol": {"layer": shown}})
            for n, (given, shown) in enumerate(layers)
        ]  # fmt: skip
        return [table.title for table in tables(tmp_path / folder, made)]

    layer = "trigger pixel, protocol.layer"
    both = [f"{layer} penultimate", f"{layer} layer3"]
    assert titles("unset", (None, "penultimate"), ("layer3", "layer3")) == both
    # The same layer, once by default and once by name: only the configuration tells them apart.
    assert titles("same", (None, "layer3"), ("layer3", "layer3")) == [
        "trigger pixel, config defense.layer any", "trigger pixel, config defense.layer layer3"
    ]  # fmt: skip


def test_data_sets_with_the_same_name_are_distinguished_by_the_start_of_their_hash(
    tmp_path: Path,
) -> None:
    made = [record(seed=n, config={"data": digit * 64}) for n, digit in enumerate("ab")]
    titles = [table.title for table in tables(tmp_path, made)]
    assert titles == [f"trigger pixel, config data {digit * 10}" for digit in "ab"]


def test_the_table_of_a_protocol_shows_which_cells_are_missing(tmp_path: Path) -> None:
    asked = [record(), record(target="dog"), failed(record(target="horse"))]
    asked[2]["protocol"] = None
    (table,) = tables(tmp_path, [asked[0], asked[2]], asked)
    assert [cell.status for cell in table.cells.values()] == ["done", "missing", "failed: oom"]


def test_the_ratio_is_shown_as_a_number_of_images_if_the_protocol_counts_images(
    tmp_path: Path,
) -> None:
    counted = {**PROTOCOL, "ratio_of": "count"}
    found = tables(
        tmp_path, [record(ratio=500, protocol=counted), record(target="dog", ratio=0.003)]
    )
    assert [table.rows[0][1] for table in found] == ["500", "0.3%"]


def test_a_ratio_of_one_is_shown_as_100_percent_or_one_image(tmp_path: Path) -> None:
    counted = {**PROTOCOL, "ratio_of": "count"}
    found = tables(tmp_path, [record(ratio=1), record(target="dog", ratio=1, protocol=counted)])
    assert [table.rows[0][1] for table in found] == ["100%", "1"]


def test_cells_with_unreadable_records_are_in_a_separate_table(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "s", [record()])
    (folder / "stray").mkdir()
    (folder / "stray" / "record.json").write_text("{")
    found = SweepReport(read_sweep(folder)).tables
    assert [t.title for t in found] == ["trigger pixel", "unreadable"]
    assert grids(found[1])[0].rows == [["stray", "–", *["–"] * 6, "failed: damaged record"]]


def test_the_exported_data_frame_has_one_row_per_cell(tmp_path: Path) -> None:
    asked = [record(), failed(record(seed=1)), record(seed=2)]
    frame = SweepReport(read_sweep(write_sweep(tmp_path / "s", asked[:2], asked))).facts.frame
    assert list(frame["status"]) == ["done", "failed: oom", "missing"]
    assert list(frame.columns[:5]) == ["sweep", "id", "status", "error", "dataset"]
    first = frame.iloc[0]
    assert first["protocol.ratio_of"] == "target"
    assert first["seconds.train"] == 30
    assert first["nat1"] == asked[0]["nat1"]
    assert first["auroc"] == 0.99


def test_all_to_all_attacks_are_noted_below_every_table(tmp_path: Path) -> None:
    made = [
        record(seed=s, defense=d, protocol={**PROTOCOL, "label_mode": "all_to_all"})
        for s in (0, 1)
        for d in ("spectral_every_class", "random")
    ]
    folder = write_sweep(tmp_path / "every", made)
    sweep = read_sweep(folder)
    found = against_random(sweep)
    assert found is not None
    for notes in (
        SweepReport(sweep).tables[0].notes,
        pivot_cells(sweep.cells, PivotSpec(columns=("defense",)))[0].notes,
        found.notes,
    ):
        assert sum(note == EVERY_CLASS for note in notes) == 1
    plain = read_sweep(write_sweep(tmp_path / "one", [record()]))
    assert EVERY_CLASS not in SweepReport(plain).tables[0].notes
    assert EVERY_CLASS not in pivot_cells(plain.cells, PivotSpec())[0].notes
