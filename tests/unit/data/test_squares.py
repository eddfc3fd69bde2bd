"""Any images of a folder, read as squares of one size."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from backdoor_lab.core.errors import DataError
from backdoor_lab.data.squares import middle_squares


def test_the_middle_square_of_a_wide_image_is_taken(tmp_path: Path) -> None:
    wide = np.zeros((4, 10, 3), dtype=np.uint8)
    wide[:, 3:7] = 200
    Image.fromarray(wide).save(tmp_path / "wide.png")
    (found,) = middle_squares(tmp_path, 1, 4)
    assert (found == 200).all()


def test_the_first_images_by_name_are_taken_from_subfolders_of_any_depth(tmp_path: Path) -> None:
    for number, name in enumerate(("b/x.png", "a.png", "c.png")):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (5, 7), (10 * number,) * 3).save(path)
    found = middle_squares(tmp_path, 2, 3)
    assert found.shape == (2, 3, 3, 3)
    assert found[:, 0, 0, 0].tolist() == [10, 0]


def test_an_archive_is_read_like_a_folder(tmp_path: Path) -> None:
    Image.new("L", (6, 6), 77).save(tmp_path / "gray.png")
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.write(tmp_path / "gray.png", "some/gray.png")
    found = middle_squares(tmp_path / "photos.zip", 5, 2)
    assert found.tolist() == [[[[77] * 3] * 2] * 2]


def test_a_folder_without_images_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(DataError, match="the folder or archive contains no image file"):
        middle_squares(tmp_path, 1, 8)
