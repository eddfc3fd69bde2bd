"""Rows 15 and 17 of the fault table: hostile files are not executed, and hostile names do not leave
their folder."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from backdoor_lab.core.errors import DataError, LabError
from backdoor_lab.core.store import Store
from backdoor_lab.data import open_dataset
from backdoor_lab.data.arrays import ArrayFile
from backdoor_lab.training.train import last_checkpoint
from tests.helpers.cells import lasting, run_here


class Bomb:
    """An object whose unpickling leaves a marker."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return (os.mkdir, (str(self.marker),))


def test_a_checkpoint_with_code_is_refused(tmp_path: Path) -> None:
    """The code does not run, and the file does not count as a checkpoint."""
    torch.save({"state_dict": Bomb(tmp_path / "boom")}, tmp_path / "epoch=1.ckpt")
    assert last_checkpoint(tmp_path) is None
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize(
    "name", ["weights.safetensors", "poison.safetensors", "verdict.safetensors"]
)
def test_a_pickle_in_the_store_never_runs(name: str, tmp_path: Path) -> None:
    """A pickle in the place of a stage's file has the wrong hash: the file is renamed and computed
    again."""
    usual = lasting(run_here(tmp_path / "store", tmp_path / "cell"))
    (found, *_) = (tmp_path / "store").glob(f"*/*/{name}")
    found.write_bytes(pickle.dumps(Bomb(tmp_path / "boom")))
    (tmp_path / "cell/record.json").unlink()
    assert lasting(run_here(tmp_path / "store", tmp_path / "cell")) == usual
    assert not (tmp_path / "boom").exists()
    assert list((tmp_path / "store").glob("*/.bad-*"))


def test_an_npz_with_objects_is_refused(tmp_path: Path) -> None:
    """Object arrays are pickles, which NumPy must not load."""
    bomb = np.array([Bomb(tmp_path / "boom")], dtype=object)
    np.savez(tmp_path / "evil.npz", train_images=bomb, train_labels=np.zeros(1, int),
             test_images=bomb, test_labels=np.zeros(1, int))  # fmt: skip
    with pytest.raises(DataError):
        open_dataset(ArrayFile(root=str(tmp_path / "evil.npz")), Store(tmp_path / "store"))
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize(
    "name", ["../../x", "a/b", "..", "$(touch x)", "a b", "`x`", "a;b", "x" * 65]
)
def test_names_that_are_not_safe_folder_names_are_refused(name: str, tmp_path: Path) -> None:
    """Names become folder names, so only safe ones are accepted."""
    with pytest.raises(LabError, match="must match"):
        run_here(tmp_path / "store", tmp_path / "cell", f"trigger.name='{name}'")
