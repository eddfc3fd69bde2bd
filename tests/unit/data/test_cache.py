"""Opening a data set: it is computed once and memory-mapped afterwards, and equal content has an
equal digest (rows 4, 6 and 13 of the fault table)."""

from __future__ import annotations

import dataclasses
import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import backdoor_lab
from backdoor_lab.core.errors import ConfigError, DataError
from backdoor_lab.core.store import Store
from backdoor_lab.data import Arrays, Source, Split, open_dataset, overlap
from backdoor_lab.data.arrays import ArrayFile
from backdoor_lab.data.cache import content_digest
from backdoor_lab.data.synthetic import CLASSES, draw
from backdoor_lab.data.synthetic_source import Synthetic
from backdoor_lab.data.torchvision_sets import Cifar10

TINY: dict[str, Any] = {"size": 8, "per_class_train": 3, "per_class_test": 2}


class Counted(Synthetic):
    """A data set that counts how often it is read."""

    reads = 0

    def read(self) -> Arrays:
        self.reads += 1
        return super().read()


def test_the_synthetic_data_set_can_be_opened(tmp_path: Path) -> None:
    dataset = open_dataset(Synthetic(**TINY), Store(tmp_path))
    assert dataset.train.images.shape == (30, 3, 8, 8)
    assert dataset.train.images.dtype == torch.uint8
    assert dataset.test.labels.dtype == torch.int64
    assert dataset.test.labels.bincount().tolist() == [2] * 10
    assert dataset.name == "synthetic"
    assert "bird" in dataset.classes
    assert overlap(dataset) == 0


def test_opening_a_data_set_again_reads_only_the_store(tmp_path: Path) -> None:
    source = Counted(**TINY)
    first, second = (open_dataset(source, Store(tmp_path)) for _ in range(2))
    assert source.reads == 1
    assert torch.equal(first.train.images, second.train.images)
    assert first.train.digest == second.train.digest
    open_dataset(Counted(**TINY | {"seed": 1}), Store(tmp_path))
    assert len(list(tmp_path.glob("data/*/manifest.json"))) == 2


def test_writing_to_the_tensors_does_not_change_the_store(tmp_path: Path) -> None:
    dataset = open_dataset(Synthetic(**TINY), Store(tmp_path))
    before = dataset.train.images.clone()
    dataset.train.images.zero_()
    assert torch.equal(open_dataset(Synthetic(**TINY), Store(tmp_path)).train.images, before)


def test_damage_in_the_store_is_repaired(tmp_path: Path) -> None:
    before = open_dataset(Synthetic(**TINY), Store(tmp_path)).train.digest
    (path,) = tmp_path.glob("data/*/train_images.npy")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    source = Counted(**TINY)
    assert open_dataset(source, Store(tmp_path)).train.digest == before
    assert source.reads == 1


@pytest.mark.parametrize(
    "change",
    [
        {"images": np.ones((2, 1, 2, 2), np.uint8)},
        {"images": np.zeros((2, 1, 1, 4), np.uint8)},
        {"labels": np.array([1, 0])},
    ],
    ids=["other pixels", "other image shape", "other labels"],
)
def test_digests_depend_only_on_content(change: dict[str, Any]) -> None:
    split = Split(np.zeros((2, 1, 2, 2), np.uint8), np.array([0, 1]))
    before = content_digest(split, ("a", "b"))
    assert content_digest(dataclasses.replace(split, **change), ("a", "b")) != before
    assert content_digest(split, ("a", "c")) != before
    assert content_digest(Split(split.images.copy(order="F"), split.labels), ("a", "b")) == before


def test_equal_data_from_a_file_and_from_code_has_equal_digests(tmp_path: Path) -> None:
    drawn = Synthetic(**TINY).read()
    np.savez(
        tmp_path / "drawn.npz",
        x_train=drawn.train.images,
        y_train=drawn.train.labels,
        x_test=drawn.test.images,
        y_test=drawn.test.labels,
        classes=np.array(drawn.classes),
    )
    from_file = open_dataset(ArrayFile(root=str(tmp_path / "drawn.npz")), Store(tmp_path / "s"))
    from_code = open_dataset(Synthetic(**TINY), Store(tmp_path / "s"))
    assert from_file.train.digest == from_code.train.digest
    assert from_file.test.digest == from_code.test.digest != from_code.train.digest


def test_the_default_shift_of_synthetic_images_is_not_part_of_their_identity() -> None:
    before = Synthetic(**TINY)
    parameters = {"size": 8, "channels": 3, "seed": 0, "noise": 12.0}
    assert before.identity() == {**parameters, "train": 3, "test": 2}
    assert Synthetic(**TINY, shift=0.2).identity() == before.identity()
    assert Synthetic(**TINY, shift=0.1).identity() == {**before.identity(), "shift": 0.1}
    assert np.array_equal(draw(3, size=8)[0], draw(3, size=8, shift=0.2)[0])


def test_synthetic_images_with_shift_zero_have_every_object_in_the_center() -> None:
    images, labels = draw(30, size=32, seed=1, noise=0.0, shift=0.0)
    assert np.abs(_middles(images[labels == CLASSES.index("frog")])).max() < 0.02
    moved, _ = draw(30, size=32, seed=1, noise=0.0, shift=0.2)
    assert np.abs(_middles(moved[labels == CLASSES.index("frog")])).max() > 0.1


def _middles(rings: Any) -> Any:
    """The center of each ring, (n, 2), in units of half the width: the mean position of its bright
    pixels."""
    bright = rings.astype(float).mean(axis=1)
    bright = bright > (bright.min(axis=(1, 2)) + bright.max(axis=(1, 2)))[:, None, None] / 2
    axis = (np.arange(rings.shape[-1]) + 0.5) / rings.shape[-1] * 2 - 1
    count = bright.sum(axis=(1, 2))
    return np.stack(
        [
            (bright * axis).sum(axis=(1, 2)) / count,
            (bright * axis[:, None]).sum(axis=(1, 2)) / count,
        ],
        1,
    )


def test_the_overlap_is_the_number_of_test_images_that_occur_in_the_training_set(
    tmp_path: Path,
) -> None:
    images = np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1)
    repeated = np.array([5, 9, 0, 0], np.uint8).reshape(4, 1, 1, 1)
    labels = np.array([0, 1] * 3)
    path = tmp_path / "a.npz"
    np.savez(path, x_train=images, y_train=labels, x_test=repeated, y_test=labels[:4])
    source = ArrayFile(root=str(path), layout="NCHW")
    assert overlap(open_dataset(source, Store(tmp_path / "store"))) == 3


def test_invalid_data_is_refused_and_not_published(tmp_path: Path) -> None:
    class NoDogs(Synthetic):
        def read(self) -> Arrays:
            arrays = super().read()
            keep = arrays.test.labels != arrays.classes.index("dog")
            test = Split(arrays.test.images[keep], arrays.test.labels[keep])
            return dataclasses.replace(arrays, test=test)

    with pytest.raises(DataError, match=r"data set synthetic, test: .* have none: dog"):
        open_dataset(NoDogs(**TINY), Store(tmp_path))
    assert not list(tmp_path.glob("data/*/manifest.json"))


@pytest.mark.parametrize(
    "parameters",
    [
        {"size": 0},
        {"channels": 2},
        {"seed": -1},
        {"per_class_train": 1.5},
        {"per_class_test": 0},
        {"noise": float("nan")},
        {"shift": -0.1},
        {"shift": 1},
        {"limit_train": True},
        {"name": ".."},
    ],
)
def test_bad_parameters_raise_config_error(parameters: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Synthetic(**parameters)


def test_the_synthetic_data_set_and_its_draw_function_have_the_same_default_noise() -> None:
    default = inspect.signature(draw).parameters["noise"].default
    assert inspect.signature(Synthetic).parameters["noise"].default == default


def test_image_limits_apply_to_every_data_source(tmp_path: Path) -> None:
    dataset = open_dataset(Synthetic(**TINY, limit_train=2, limit_test=1), Store(tmp_path))
    assert dataset.train.labels.bincount().tolist() == [2] * 10
    assert dataset.test.labels.bincount().tolist() == [1] * 10


RACE = """
import sys, time
from pathlib import Path
from backdoor_lab.data import open_dataset
from backdoor_lab.data.synthetic import CLASSES, draw
from backdoor_lab.data.synthetic_source import Synthetic
from backdoor_lab.data.torchvision_sets import Cifar10
from backdoor_lab.core.store import Store

folder, me = Path(sys.argv[1]), sys.argv[2]

class Slow(Synthetic):
    def read(self):
        (folder / f"read-{me}").touch()
        time.sleep(0.5)
        return super().read()

(folder / f"here-{me}").touch()
while len(list(folder.glob("here-*"))) < 2:
    time.sleep(0.01)
source = Slow(size=8, per_class_train=3, per_class_test=2)
print(open_dataset(source, Store(folder / "store")).train.digest)
print(Cifar10(root=me).fingerprint(), "torchvision" in sys.modules)
"""


def test_two_concurrent_processes_store_the_data_set_once(tmp_path: Path) -> None:
    # The class is in a file, because a class defined with -c has no source that could be hashed.
    (tmp_path / "race.py").write_text(RACE)
    code = "import sys; sys.path.insert(0, sys.argv[1]); import race"
    both = [start(code, str(tmp_path), str(seed), PYTHONHASHSEED=str(seed)) for seed in range(2)]
    try:
        answers = {process.communicate(timeout=60)[0] for process in both}
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0]
    assert len(answers) == 1, "digest and fingerprint depend on the process"
    assert answers.pop().endswith(f"{Cifar10().fingerprint()} False\n"), "torchvision was imported"
    assert len(list(tmp_path.glob("read-*"))) == 1
    assert len(list(tmp_path.glob("store/data/*/manifest.json"))) == 1


def start(code: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    path = str(Path(backdoor_lab.__file__).parents[1])
    variables = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True)


def test_a_data_source_without_an_identity_and_a_read_method_is_refused() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Source(name="x")  # type: ignore[abstract]
