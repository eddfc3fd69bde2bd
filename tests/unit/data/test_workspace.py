"""Large arrays in files: equal content, no copies, and clear errors."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch

from backdoor_lab.attacks.blended import Blended
from backdoor_lab.attacks.plan import PoisonSpec
from backdoor_lab.attacks.poison import poison
from backdoor_lab.attacks.warp import WaNet
from backdoor_lab.core import tensor_io
from backdoor_lab.core.errors import DataError
from backdoor_lab.core.store import Store
from backdoor_lab.core.types import LabeledImages
from backdoor_lab.data import open_dataset, workspace
from backdoor_lab.data.arrays import ArrayFile
from backdoor_lab.data.huggingface import HuggingFace
from backdoor_lab.data.image_folder import ImageFolder
from backdoor_lab.data.npz import load
from backdoor_lab.data.workspace import Workspace
from backdoor_lab.training.evaluate import channel_stats
from tests.helpers.image_files import filled, parts


@pytest.fixture
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("workspace", "npz"):
        monkeypatch.setattr(f"backdoor_lab.data.{module}.SMALL", 0)
    monkeypatch.setattr("backdoor_lab.data.npz.PIECE", 100)
    monkeypatch.setattr(workspace, "SMALL_UNNAMED", 0)
    monkeypatch.setattr(workspace, "PIECE", 100)
    monkeypatch.setattr(tensor_io, "LARGE", 100)
    monkeypatch.setattr("backdoor_lab.attacks.poison.TOGETHER", 0)


def saved(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


@pytest.mark.usefixtures("everything_is_large")
def test_files_are_those_of_arrays_in_memory(tmp_path: Path) -> None:
    space = Workspace(tmp_path)
    made = space.empty((10, 3, 4, 4), "images", "")
    made[:] = np.arange(480).reshape(made.shape) % 251
    copy = np.array(made)
    space.write({tmp_path / "a.npy": made[:7], tmp_path / "b.npy": made[7:]})
    assert (tmp_path / "a.npy").read_bytes() == saved(copy[:7])
    assert (tmp_path / "b.npy").read_bytes() == saved(copy[7:])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npy", "b.npy"]


@pytest.mark.usefixtures("everything_is_large")
@pytest.mark.parametrize("folder", [True, False])
def test_files_are_as_long_on_systems_without_posix_fallocate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: bool
) -> None:
    monkeypatch.delattr("os.posix_fallocate")
    made = Workspace(tmp_path if folder else None).empty((7, 1, 5, 5), "images", "")
    assert made.shape == (7, 1, 5, 5)
    assert not made.any()
    for path in tmp_path.iterdir():
        assert path.stat().st_size == 128 + 175


@pytest.mark.parametrize("kind", [ImageFolder, HuggingFace])
def test_image_files_become_the_same_data_set_in_memory_and_in_files(
    tmp_path: Path, request: pytest.FixtureRequest, kind: type[ImageFolder | HuggingFace]
) -> None:
    root = filled(tmp_path / "set")
    (root / "train/cat/00.png").write_bytes(b"broken")
    source = kind(root=str(root), skip_broken=True)
    small = open_dataset(source, Store(tmp_path / "small"))
    request.getfixturevalue("everything_is_large")
    large = open_dataset(source, Store(tmp_path / "large"))
    for split in ("train", "test"):
        assert getattr(small, split).digest == getattr(large, split).digest
        assert torch.equal(getattr(small, split).images, getattr(large, split).images)
    names = ["manifest.json", "test_images.npy", "test_labels.npy", "train_images.npy",
             "train_labels.npy"]  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "large").glob("data/*/*")) == names


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("options", [{}, {"size": 3}, {"limit_train": 1}])
def test_an_npz_file_becomes_the_same_data_set_in_memory_and_in_files(
    tmp_path: Path, request: pytest.FixtureRequest, save: object, options: dict[str, int]
) -> None:
    assert callable(save)
    save(tmp_path / "set.npz", **parts())
    source = ArrayFile(root=str(tmp_path / "set.npz"), **options)
    small = open_dataset(source, Store(tmp_path / "small"))
    request.getfixturevalue("everything_is_large")
    large = open_dataset(source, Store(tmp_path / "large"))
    unstored = open_dataset(source, Store(tmp_path / "none", read_only=True))
    assert small.train.digest == large.train.digest == unstored.train.digest
    assert torch.equal(small.train.images, large.train.images)
    assert torch.equal(small.test.images, unstored.test.images)


@pytest.mark.usefixtures("everything_is_large")
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damage_in_a_large_npz_file_is_an_error(tmp_path: Path, save: object) -> None:
    assert callable(save)
    path = tmp_path / "set.npz"
    values = np.random.default_rng(0).integers(0, 256, 5000, np.uint8)
    save(path, train_images=values)
    assert np.array_equal(load(path, ["train_images"], Workspace())["train_images"], values)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    with pytest.raises(DataError, match="not a valid .npz file"):
        load(path, ["train_images"], Workspace())


@pytest.mark.parametrize("make", [lambda: Blended(), lambda: WaNet()])
def test_poison_made_in_parts_equals_poison_made_at_once(
    make: object, request: pytest.FixtureRequest
) -> None:
    assert callable(make)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (60, 3, 16, 16), generator=generator).to(torch.uint8)
    train = LabeledImages(images, torch.arange(60) % 3, ("a", "b", "c"))
    plan = PoisonSpec(target=1, source=None, ratio=0.5, cover_rate=0.5)
    at_once = poison(train, make(), plan, seed=3)
    request.getfixturevalue("everything_is_large")
    in_parts = poison(train, make(), plan, seed=3)
    assert len(at_once.training.rows) > 10
    assert torch.equal(at_once.training.rows, in_parts.training.rows)
    assert at_once.training.digest == in_parts.training.digest


@pytest.mark.usefixtures("everything_is_large")
def test_a_large_tensor_is_written_as_safetensors_writes_it(tmp_path: Path) -> None:
    from safetensors.torch import save

    tensors = {"rows": torch.arange(500).to(torch.uint8).view(5, 4, 25), "labels": torch.arange(5),
               "index": torch.arange(9)}  # fmt: skip
    tensor_io.write_tensors(tmp_path / "x", tensors)
    assert (tmp_path / "x").read_bytes() == save(tensors)


def test_channel_statistics_are_exact_for_several_chunks() -> None:
    images = torch.randint(0, 256, (70, 3, 64, 512)).to(torch.uint8)
    mean, std = channel_stats(images)
    values = images.double().transpose(0, 1).flatten(1)
    assert torch.equal(mean, values.mean(1).float())
    assert torch.allclose(std.double(), values.std(1, correction=0), rtol=1e-6)
