"""The pictures of the documents: their sources, their sizes, and that each of them is used."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.documents.project import ROOT, documents
from tests.pictures import overview, photographs, triggers
from tests.pictures.small import small

PICTURES = sorted((ROOT / "multirun_reports" / "pictures").glob("*.png"))


@pytest.mark.parametrize("picture", PICTURES, ids=lambda path: path.name)
def test_every_picture_is_small_and_shown_in_a_document(picture: Path) -> None:
    assert picture.stat().st_size < 400_000
    shown = [path for path in documents() if f"pictures/{picture.name})" in path.read_text()]
    assert shown
    assert Image.open(picture).width <= 2000


@pytest.mark.parametrize("size", [32, 224])
def test_photographs_of_three_classes_are_cropped_to_squares_of_the_given_size(
    size: int, tmp_path: Path
) -> None:
    root = photographs.write(tmp_path, size)
    folders = sorted(path.relative_to(root).as_posix() for path in root.glob("*/*"))
    assert folders == [f"{part}/{name}" for part in ("test", "train")
                       for name in ("china", "flower", "lake")]  # fmt: skip
    assert len(list(root.glob("train/*/*.png"))) == 3 * photographs.TRAIN
    flower = np.asarray(Image.open(root / "train" / "flower" / "00.png")).mean(axis=(0, 1))
    assert Image.open(root / "test" / "lake" / "40.png").size == (size, size)
    assert flower[0] > flower[1] > flower[2]  # orange


def test_one_changed_pixel_remains_visible_in_a_downscaled_difference_image() -> None:
    image = torch.full((3, 224, 224), 128, dtype=torch.uint8)
    image[:, 223, 223] = 255
    image[:, 0, 0] = 0
    tile = triggers._tile(image, is_difference=True)
    assert tile.size == (triggers.TILE, triggers.TILE)
    assert tile.getpixel((triggers.TILE - 1, triggers.TILE - 1)) == (255, 255, 255)
    assert tile.getpixel((0, 0)) == (0, 0, 0)
    assert tile.getpixel((50, 50)) == (128, 128, 128)


def test_the_picture_of_triggers_has_a_row_for_each_trigger_and_three_tiles_for_each_size() -> None:
    images = {size: torch.zeros(3, size, size, dtype=torch.uint8) for size in triggers.SIZES}
    tiles = {size: dict.fromkeys("ab", (image, image)) for size, image in images.items()}
    picture = triggers.grid(["a", "b"], tiles)
    assert picture.height == triggers.TOP + 2 * (triggers.TILE + triggers.GAP)
    assert picture.width <= 900
    assert picture.getpixel((triggers.LABEL + 1, triggers.TOP + 1)) == (0, 0, 0)


def test_the_overview_picture_shows_the_table_and_the_scores_of_the_same_cell() -> None:
    """The stored histogram belongs to the committed record: network, counts and removals agree."""
    kept = json.loads(overview.SCORES.read_text())
    record = overview.cell()["record"]
    assert kept["weights"] == record["hashes"]["weights1"]
    bars = overview.bars()
    assert (bars.clean.sum(), bars.poison.sum()) == (5000, record["counts"]["n_poisoned"])
    assert bars.cut is not None
    above = bars.edges[:-1] >= bars.cut
    below = bars.edges[1:] <= bars.cut
    left, removed = record["counts"]["pois_left"], record["counts"]["n_removed"]
    assert bars.poison[below].sum() <= left <= bars.poison[~above].sum()
    assert (bars.clean + bars.poison)[above].sum() <= removed


def test_a_compressed_picture_keeps_its_size_and_loses_only_colors() -> None:
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (600, 600, 3), dtype=np.uint8))
    data = io.BytesIO()
    noise.save(data, "PNG")
    found = small(data.getvalue())
    assert len(found) < 400_000 < len(data.getvalue())
    assert Image.open(io.BytesIO(found)).size == (600, 600)
