"""Visibility of the poison that a defense leaves: figures compared with values computed by hand and
with a second implementation, and the command on a made-up store."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from backdoor_lab.analysis.visibility import visibility
from backdoor_lab.visibility import main
from tests.helpers.records import write_sweep
from tests.helpers.stages import POISONED, Made, cell, sweep


def test_the_change_of_an_image_is_the_norm_over_all_pixel_values() -> None:
    """Changes of 3 and 4 in two channels give 5, painting a white corner white gives 0, and
    painting a white pixel black gives 255."""
    before = np.full((4, 3, 2, 2), 255, np.uint8)
    after = before.copy()
    after[0, 0, 0, 0], after[0, 2, 1, 1] = 252, 251
    after[2, 1, 0, 1] = 0
    after[3, 0, 0, 0] = 245
    found = visibility(before, after, np.array([True, True, False, False]))
    assert (found.poisoned, found.left) == (4, 2)
    assert (found.change_left, found.largest_left) == (2.5, 5)
    assert (found.smallest_found, found.change_found) == (10, 132.5)
    assert found.auroc == 1


def test_auroc_of_the_changes_agrees_with_sklearn() -> None:
    draw = np.random.default_rng(0)
    before, after = draw.integers(0, 256, (2, 60, 3, 4, 4)).astype(np.uint8)
    after[:20] = before[:20]
    kept = draw.random(60) < 0.5
    change = np.linalg.norm((after.astype(int) - before).reshape(60, -1), axis=1)
    assert visibility(before, after, kept).auroc == pytest.approx(roc_auc_score(kept, -change))


@pytest.mark.parametrize("kept", [False, True])
def test_some_visibility_values_are_nan_if_all_or_none_of_the_poison_is_left(kept: bool) -> None:
    images = np.zeros((3, 1, 2, 2), np.uint8)
    found = visibility(images, images + 1, np.full(3, kept))
    there, missing = [found.smallest_found, found.change_found], [
        found.change_left, found.largest_left,
    ]  # fmt: skip
    if kept:
        there, missing = missing, there
    assert there == [2, 2]
    assert np.isnan([*missing, found.auroc]).all()


@pytest.mark.parametrize("replace", [False, True])
def test_the_visibility_command_prints_one_line_per_filter_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], replace: bool
) -> None:
    """Two filter results with different seeds give two lines, although one of them has two records.
    The values are computed from the synthetic images."""
    store = tmp_path / ".store"
    made = [Made(seed, covers=3, replace=replace) for seed in (0, 1)]
    records = [cell(store, each, f"cell{n}", seed=n) for n, each in enumerate(made)]
    again = json.loads(json.dumps(records[0])) | {"id": "again"}
    folder = write_sweep(tmp_path / "sweep", [*records, again])
    out = tmp_path / "visibility.csv"
    assert main([str(folder), "--out", str(out)]) == 0
    lines = list(csv.DictReader(out.read_text().splitlines()))
    assert [line["seed"] for line in lines] == ["0", "1"]
    for line, each in zip(lines, made, strict=True):
        kept = each.keep[each.poison]
        source = each.index[each.poison] - len(each.base)
        change = 255.0 - each.base[each.source[source]][:, :, -1, -1].astype(float)
        change = np.linalg.norm(change, axis=1)
        assert (int(line["poisoned"]), int(line["left"])) == (POISONED, kept.sum())
        assert float(line["change_found"]) == pytest.approx(np.median(change[~kept]))
        assert float(line["change_left"] or "nan") == pytest.approx(
            np.median(change[kept]) if kept.any() else np.nan, nan_ok=True
        )
    assert capsys.readouterr().out.count("| pixel") == 2
    for suffix in ("md", "tex", "html"):
        assert main([str(folder), "--out", str(out.with_suffix(f".{suffix}"))]) == 0
        assert "AUROC change" in out.with_suffix(f".{suffix}").read_text()


def test_an_option_that_varies_within_a_defense_has_a_separate_column(
    tmp_path: Path,
) -> None:
    store, layers = tmp_path / ".store", ["penultimate", "layer4.0"]
    records = [cell(store, Made(n), f"cell{n}") | {"id": f"cell{n}"} for n in range(3)]
    for record, layer in zip(records, layers, strict=False):
        record["protocol"]["layer"] = layer
    records[2]["choices"]["defense"] = "random"
    folder = write_sweep(tmp_path / "sweep", records)
    out = tmp_path / "visibility.csv"
    assert main([str(folder), "--out", str(out)]) == 0
    lines = list(csv.DictReader(out.read_text().splitlines()))
    assert [line["protocol.layer"] for line in lines][:2] == layers
    assert [line["defense"] for line in lines] == ["spectral", "spectral", "random"]
    assert list(lines[0])[:6] == ["trigger", "target", "ratio", "seed", "defense", "protocol.layer"]


def test_bad_arguments_of_the_visibility_command_give_a_one_line_error_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = sweep(tmp_path)
    wrong = {
        "no such folder": [str(tmp_path / "none")],
        "must end in one of": [str(tmp_path / "none"), "--out", str(tmp_path / "table.xls")],
        "no such folder: ": [str(folder), "--store", str(tmp_path / "none")],
    }
    for text, words in wrong.items():
        assert main(words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert text in line
    shutil.rmtree(tmp_path / ".store" / "filter")
    assert main([str(folder)]) == 2
    assert "has poison, images and a filter result in the store" in capsys.readouterr().err
