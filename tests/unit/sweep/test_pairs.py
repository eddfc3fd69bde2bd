"""Sweeps over pairs of source and target classes: which pairs are cells, and the heat maps."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from matplotlib import colors

from backdoor_lab.config_loader import conf_dir
from backdoor_lab.data.synthetic import CLASSES
from backdoor_lab.figures import heat
from backdoor_lab.figures.catalogue import of_sweep
from backdoor_lab.figures.inputs import SweepData
from backdoor_lab.results.artifact_reader import ArtifactReader, raw_records
from backdoor_lab.results.sweeps import read_sweep
from backdoor_lab.status import look
from backdoor_lab.tables.layout import PivotSpec
from backdoor_lab.tables.pivot import pivot_cells
from backdoor_lab.tables.text import grid
from tests.helpers.cells import TINY
from tests.helpers.program import many
from tests.helpers.project import swept
from tests.helpers.records import failed, record, write_sweep

BY_CLASS = PivotSpec(("source",), ("target",), ("asr2",))
# Of these six combinations cat → cat (twice) and airplane → airplane are skipped; airplane → cat
# is requested by name and by number.
NUMBERS = ("source=cat,0", "target=airplane,cat,3")


def test_cells_with_equal_source_and_target_are_skipped_by_sweeps_by_estimates_and_by_status(
    tmp_path: Path,
) -> None:
    command = ["-m", *TINY, "retrain=false", "hydra.sweep.dir=pairs", *NUMBERS]
    told, done, again, after = many(
        tmp_path, [[*command, "dry_run=true"], command, command, [*command, "dry_run=true"]]
    )[0]
    assert [run[0] for run in (told, done, again, after)] == [0, 0, 0, 0], done
    assert "2 cells, 0 done" in told[1]
    for run in (told, done):
        said = run[1] + run[2]
        assert said.count("3 of 6 combinations skipped: source = target") == 1
        assert "1 cell of 3 skipped: duplicate" in said
    assert "2 of 2 cells done:" in done[1] + done[2]
    listed = json.loads((tmp_path / "pairs" / "sweep.json").read_text())["asked"]
    assert [each["id"].rpartition("-")[0] for each in listed] == [
        "pixel-cat-to-airplane-r0.3-spectral-s0", "pixel-airplane-to-cat-r0.3-spectral-s0",
    ]  # fmt: skip
    assert len(list((tmp_path / "pairs").glob("*/record.json"))) == 2
    assert "2 of 2 cells already done" in again[1] + again[2]
    assert "2 cells, 2 done" in after[1]
    states = look(read_sweep(tmp_path / "pairs"), time.time())
    assert [each.kind for each in states] == ["done", "done"]


SAME = "`source` and `target` must differ, but both are class"
REFUSED = {
    "-m source=cat target=cat": f"no valid cell in 1 combination: {SAME} 3 (cat)",
    "-m source=cat,3 target=cat": f"no valid cell in 2 combinations: {SAME} 3 (cat)",
    "source=0 target=airplane": f"{SAME} 0 (airplane)",
    # An error in another cell is still reported with that cell.
    "-m source=cat,brid target=cat": "source=brid target=cat): `source` 'brid' is not known",
    "-m source=cat target=cat,brid": "source=cat target=brid): `target` 'brid' is not known",
}


def test_a_sweep_whose_cells_all_have_equal_source_and_target_is_refused(tmp_path: Path) -> None:
    commands = [sorted([*TINY, *words.split()], key=lambda word: word != "-m") for words in REFUSED]
    for (code, _, said, _), rule in zip(many(tmp_path, commands)[0], REFUSED.values(), strict=True):
        assert code == 2
        assert len(said.strip().splitlines()) == 1
        assert rule in said
    assert list(tmp_path.rglob("sweep.json")) == []


def test_the_experiment_named_pairs_covers_every_pair_of_the_synthetic_classes(
    tmp_path: Path,
) -> None:
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        found = compose("config", ["experiment=pairs"])
    names = {key: found[key]["name"] for key in ("dataset", "trigger", "defense", "protocol")}
    assert names == {
        "dataset": "synthetic", "trigger": "pixel", "defense": "spectral", "protocol": "group13",
    }  # fmt: skip
    assert (found.ratio, found.model.width) == (0.1, 16)
    asked = swept("pairs")
    assert asked["source"].split(",") == asked["target"].split(",") == list(CLASSES)
    tiny = [word for word in TINY if word.startswith(("dataset.", "model", "trainer"))]
    ((code, told, said, _),) = many(
        tmp_path, [["-m", "experiment=pairs", *tiny, "recipe.epochs=1", "dry_run=true"]]
    )[0]
    assert code == 0, said
    assert "10 of 100 combinations skipped: source = target" in told + said
    assert "90 cells, 0 done; 180 trainings to do" in told
    for source, target in itertools.permutations(CLASSES, 2):
        assert f"pixel-{source}-to-{target}-r0.1-spectral-s0-" in told


def test_the_pairs_experiment_accepts_other_data_another_network_and_another_recipe(
    tmp_path: Path,
) -> None:
    changes = (
        "dataset=image_folder", "dataset.root=x.tar.xz", "model=airbench", "recipe=airbench",
        "trainer.threads=1", "source=cat",
    )  # fmt: skip
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        pairs, plain = (
            compose("config", [*more, *changes]) for more in (["experiment=pairs"], ["ratio=0.1"])
        )
    assert pairs.model == {**plain.model, "width": 16}
    assert (pairs.dataset, pairs.recipe) == (plain.dataset, plain.recipe)
    assert (pairs.protocol, pairs.trigger) == (plain.protocol, plain.trigger)


def pairs(
    classes: tuple[str, ...] = CLASSES, trigger: str = "pixel", seed: int = 0
) -> list[dict[str, Any]]:
    """Records of every pair. ASR1 in percent is ten times the index of the source plus that of the
    target."""
    return [
        record(trigger, target, seed=seed, id=f"{trigger}-{source}-{target}-{seed}",
               asr1=(10 * i + j) / 100, choices={"source": source})
        for i, source in enumerate(classes) for j, target in enumerate(classes) if i != j
    ]  # fmt: skip


def sheets(folder: Path, made: list[dict[str, Any]]) -> list[heat.Sheet]:
    return list(heat.sheets(read_sweep(write_sweep(folder, made)).cells))


@pytest.mark.parametrize("outer", ["source", "target"])
def test_heat_maps_show_every_pair_with_the_same_class_order_on_both_axes(
    tmp_path: Path, outer: str
) -> None:
    made = pairs()
    if outer == "target":
        made.sort(key=lambda each: CLASSES.index(each["choices"]["target"]))
    (sheet,) = sheets(tmp_path / "s", made)
    assert [each.label for each in sheet.maps] == ["ASR1 in %", "ASR2 in %", "#Pois Left, images"]
    first = sheet.maps[0]
    assert first.sources == first.targets == list(CLASSES)
    expected = np.add.outer(10.0 * np.arange(10), np.arange(10))
    np.fill_diagonal(expected, np.nan)
    np.testing.assert_allclose(first.values, expected)
    left = {
        (r["choices"]["source"], r["choices"]["target"]): r["counts"]["pois_left"] for r in made
    }
    assert all(
        sheet.maps[2].values[CLASSES.index(source), CLASSES.index(target)] == number
        for (source, target), number in left.items()
    )


def test_each_square_of_a_heat_map_shows_its_value_in_a_contrasting_color(
    tmp_path: Path,
) -> None:
    (sheet,) = sheets(tmp_path / "s", pairs())
    figure = heat.heat_maps(sheet)
    axes = figure.axes[0]
    (image,) = axes.images
    assert image.get_clim() == (0, 100)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("target", "source")
    assert [label.get_text() for label in axes.get_xticklabels()] == list(CLASSES)
    told = {text.get_position()[::-1]: text for text in axes.texts}
    assert told.keys() == set(itertools.permutations(range(10), 2))
    for (row, column), text in told.items():
        assert text.get_text() == f"{10 * row + column}"
        shade = colors.to_hex(image.cmap(image.norm(10 * row + column)))
        assert heat.contrast(str(text.get_color()), shade) >= 4.5


def test_every_trigger_has_heat_maps_averaged_over_seeds(tmp_path: Path) -> None:
    three = ("cat", "dog", "frog")
    made = [*pairs(three), *pairs(three, seed=1), *pairs(three, trigger="pattern")]
    for each in made:
        each["asr1"] += 0.2 * each["choices"]["seed"]
    pixel, pattern = sheets(tmp_path / "s", made)
    assert (pixel.title, pattern.title) == ("trigger pixel", "trigger pattern")
    assert (pixel.slug, pattern.slug) == ("pixel", "pattern")
    assert pixel.maps[0].values[1, 2] == pytest.approx(12 + 10)
    assert pattern.maps[0].values[1, 2] == pytest.approx(12)


def test_heat_maps_leave_failed_cells_empty_and_need_several_targets_per_source(
    tmp_path: Path,
) -> None:
    made = pairs(("cat", "dog", "frog"))
    made[0] = failed(made[0])
    (sheet,) = sheets(tmp_path / "s", made)
    assert np.isnan(sheet.maps[0].values[0, 1])
    assert np.isfinite(sheet.maps[0].values).sum() == 5
    chain = [each for each in made if each["choices"]["target"] != "cat"]
    circle = [pairs(("cat", "dog", "frog"))[number] for number in (0, 3, 4)]
    assert len(sheets(tmp_path / "chain", chain)) == 1
    assert sheets(tmp_path / "circle", circle) == []
    assert sheets(tmp_path / "none", [record(), record("pattern")]) == []


def test_the_figures_of_a_sweep_include_its_heat_maps(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "s", pairs(("cat", "dog", "frog")))
    whole = SweepData(
        read_sweep(folder).cells, raw_records(folder), ArtifactReader(tmp_path / "store")
    )
    drawn = dict(of_sweep(whole))
    assert len(drawn["pairs_pixel"].axes) == 6


def test_the_table_of_sources_and_targets_has_the_same_class_order_on_both_axes(
    tmp_path: Path,
) -> None:
    three = ("cat", "dog", "frog")
    cells = read_sweep(write_sweep(tmp_path / "s", pairs(three))).cells
    (table,) = pivot_cells(cells, BY_CLASS)
    assert [row for (row,) in table.rows] == [column for (column,) in table.columns] == [*three]
    assert [row[0] for row in grid(table).rows] == [*three]
    assert [grid(table).rows[n][n + 1] for n in range(3)] == [""] * 3
