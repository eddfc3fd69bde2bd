"""Photographs of several sizes, at 224x224 pixels, with the stem of networks for ImageNet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.cells import run_here
from tests.helpers.small_networks import MOBILENET_WORDS

SIZES = [(260, 230), (230, 300), (224, 224), (400, 225)]


def photographs(root: Path) -> None:
    """Two classes of blurred noise, dark and bright, as JPEG files of four sizes."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 4)):
        for label, name in enumerate(("dark", "bright")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                coarse = rng.integers(100 * label, 100 * label + 120, (6, 6, 3), np.uint8)
                image = Image.fromarray(coarse).resize(SIZES[number % len(SIZES)])
                image.save(folder / f"{number}.jpg")


@pytest.mark.parametrize(
    "words", [("model.width=2", "model.stem=imagenet"), MOBILENET_WORDS], ids=["resnet18", "timm"]
)
def test_photographs_of_several_sizes_are_attacked_at_224_pixels(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    if words == MOBILENET_WORDS:
        pytest.importorskip("timm")
    photographs(tmp_path / "photos")
    record = run_here(
        tmp_path / "store", tmp_path / "cell", "target=bright", "ratio=0.25", "trigger=patch",
        "recipe.batch_size=8", "defense=spectral", *words,
        data=("dataset=image_folder", f"dataset.root={tmp_path / 'photos'}", "dataset.resize=224"),
    )  # fmt: skip
    assert record["status"] == "done", record["error"]
    [images] = (tmp_path / "store").glob("data/*/train_images.npy")
    assert np.load(images).shape == (16, 3, 224, 224)
    assert record["counts"]["n_poisoned"] == 2
    assert 0 <= record["asr2"] <= 1
