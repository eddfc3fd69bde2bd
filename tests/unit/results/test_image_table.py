"""The table of a cell's training images: its values, and the cells that have none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import rankdata

from backdoor_lab.core.errors import ConfigError, DataError, LabError
from backdoor_lab.results.frozen import RECORDS
from backdoor_lab.results.image_table import IMAGE_COLUMNS, image_table, rank_of
from backdoor_lab.results.seal import sealed
from tests.helpers.records import failed, record, write_sweep
from tests.helpers.stages import CLASSES, Made, cell, sweep

Record = dict[str, Any]


def one_cell(root: Path, **options: Any) -> tuple[Path, Made]:
    """A completed cell with made-up stage outputs."""
    made = Made(0, **options)
    found = cell(root / ".store", made, "one")
    return write_sweep(root / "sweep", [found]) / found["id"], made


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("covers", [0, 5])
def test_every_row_has_the_stored_values_of_its_image(
    tmp_path: Path, covers: int, replace: bool
) -> None:
    folder, made = one_cell(tmp_path, covers=covers, replace=replace)
    found = image_table(folder)
    assert list(found) == list(IMAGE_COLUMNS)
    assert found["index"].tolist() == list(range(len(made.index)))
    assert found["label"].tolist() == [CLASSES[label] for label in made.labels]
    np.testing.assert_array_equal(found["is_poison"], made.poison)
    assert found["is_cover"].sum() == covers
    np.testing.assert_array_equal(found["removed"], ~made.keep)
    np.testing.assert_array_equal(found["score"], made.scores)
    sources = found.set_index("index")["source_index"]
    assert sources[made.poison].tolist() == made.source.tolist()
    assert sources[found["is_cover"].to_numpy()].tolist() == made.cover.tolist()
    assert sources.notna().sum() == len(made.source) + covers


def test_only_scored_images_have_a_rank_and_the_highest_score_has_rank_1(tmp_path: Path) -> None:
    folder, made = one_cell(tmp_path)
    found = image_table(folder)
    scored = ~np.isnan(made.scores)
    assert 0 < scored.sum() < len(scored)
    np.testing.assert_array_equal(found["rank"].isna(), ~scored)
    in_order = found.dropna(subset="score").sort_values("score", ascending=False)
    assert in_order["rank"].tolist() == list(range(1, scored.sum() + 1))
    assert str(found["rank"].dtype) == str(found["source_index"].dtype) == "Int64"


@pytest.mark.parametrize(
    "scores", [[], [1.0], [2.0, 2.0, 2.0], [1.0, 3.0, 3.0, -np.inf, 2.0, np.inf, np.inf, 1.0]]
)
def test_equal_scores_share_the_smallest_rank(scores: list[float]) -> None:
    expected = rankdata(-np.array(scores), method="min") if scores else []
    np.testing.assert_array_equal(rank_of(np.array(scores)), expected)


def test_the_store_may_be_in_another_place(tmp_path: Path) -> None:
    folder, _ = one_cell(tmp_path)
    expected = image_table(folder)
    (tmp_path / ".store").rename(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="give its path with --store"):
        image_table(folder)
    pd.testing.assert_frame_equal(image_table(folder, tmp_path / "elsewhere"), expected)


def rewritten(folder: Path, change: Callable[[Record], None]) -> None:
    path = folder / "record.json"
    made = json.loads(path.read_text())
    del made["seal"]
    change(made)
    path.write_text(sealed(json.dumps(made)))


CHANGES: dict[str, tuple[Callable[[Record], Any], type[LabError], str]] = {
    "not done": (lambda r: r.update(failed(r)), DataError, "is not done"),
    "repair": (lambda r: r["run"]["stages"].pop("filter"), ConfigError, "is not a filter"),
    "none": (lambda r: r["choices"].update(defense="none"), ConfigError, "`none` is not a filter"),
    "no stages": (lambda r: r.update(run={}), DataError, "is damaged"),
    "other poison": (lambda r: r["hashes"].update(poison="0" * 64), ConfigError, "is not the one"),
    "other counts": (lambda r: r["counts"].update(n_removed=1), ConfigError, "is not the one"),
    "another id": (lambda r: r["run"]["stages"]["filter"].update(id="x"), ConfigError, "is not in"),
    "a path": (lambda r: r["run"]["stages"]["filter"].update(id="../x"), ConfigError, "damaged"),
    "other data": (lambda r: r["hashes"].update(data="x"), ConfigError, "training set of this"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_a_cell_without_a_table_gives_one_clear_error(tmp_path: Path, name: str) -> None:
    folder, _ = one_cell(tmp_path)
    change, kind, message = CHANGES[name]
    rewritten(folder, change)
    with pytest.raises(kind, match=message) as caught:
        image_table(folder)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("stage", ["poison", "filter", "data"])
@pytest.mark.parametrize("flip", [False, True])
def test_missing_and_damaged_outputs_are_reported(tmp_path: Path, stage: str, flip: bool) -> None:
    folder, _ = one_cell(tmp_path)
    (output,) = (tmp_path / ".store" / stage).iterdir()
    if flip:
        path = min(output.glob("*[ys]"))
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    else:
        shutil.rmtree(output)
    with pytest.raises(ConfigError, match="is damaged in" if flip else "is not in"):
        image_table(folder)


def test_an_edited_record_is_refused(tmp_path: Path) -> None:
    folder, _ = one_cell(tmp_path)
    path = folder / "record.json"
    path.write_text(path.read_text().replace('"pixel"', '"patch"'))
    with pytest.raises(DataError, match="is damaged"):
        image_table(folder)


def test_a_folder_that_is_no_cell_is_named_in_the_error(tmp_path: Path) -> None:
    folder, _ = sweep(tmp_path)
    with pytest.raises(ConfigError, match="it is a sweep; name the folder of one of its cells"):
        image_table(folder)
    with pytest.raises(ConfigError, match=r"it has no record\.json"):
        image_table(tmp_path)
    (folder / RECORDS).write_text("")
    for frozen in (folder, folder / record()["id"][:3]):
        with pytest.raises(ConfigError, match="it belongs to a frozen sweep"):
            image_table(frozen)
