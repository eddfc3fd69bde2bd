"""A real archive of 60,000 photographs, if it is available."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from backdoor_lab.core.store import Store
from backdoor_lab.data import open_dataset, overlap
from backdoor_lab.data.image_folder import ImageFolder

FOLDER = Path(
    os.environ.get("BACKDOOR_LAB_TEST_DATA", Path(__file__).parents[3].parent / "shared" / "data")
)
ARCHIVE = FOLDER / "cifar10-jpeg.tar.xz"


@pytest.mark.skipif(not ARCHIVE.is_file(), reason=f"{ARCHIVE.name} not in BACKDOOR_LAB_TEST_DATA")
def test_image_limits_apply_to_the_official_archive(tmp_path: Path) -> None:
    source = ImageFolder(root=str(ARCHIVE), limit_train=20, limit_test=5)
    dataset = open_dataset(source, Store(tmp_path))
    assert dataset.name == "cifar10-jpeg"
    assert dataset.train.images.shape == (200, 3, 32, 32)
    assert dataset.test.labels.bincount().tolist() == [5] * 10
    assert dataset.classes[2] == "bird"
    assert overlap(dataset) == 0
