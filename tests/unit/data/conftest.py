"""Public data sets as tiny files under the official names."""

from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from backdoor_lab.data import official
from backdoor_lab.data.official import Official
from backdoor_lab.data.torchvision_sets import Cifar10, Mnist
from tests.helpers.published import PIXELS, idx_bytes, md5, put


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root with a tiny cifar-10-python.tar.gz."""
    from torchvision import datasets

    batches = {
        "data_batch_1": {"data": PIXELS.reshape(20, -1), "labels": [0, 1] * 10},
        "test_batch": {"data": PIXELS[:4].reshape(4, -1), "labels": [1, 0, 1, 0]},
        "batches.meta": {"label_names": ["airplane", "bird"]},
    }
    raw = {name: pickle.dumps(batch) for name, batch in batches.items()}
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, data in raw.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    theirs = datasets.CIFAR10
    monkeypatch.setattr(theirs, "train_list", [["data_batch_1", md5(raw["data_batch_1"])]])
    monkeypatch.setattr(theirs, "test_list", [["test_batch", md5(raw["test_batch"])]])
    monkeypatch.setattr(theirs, "meta", theirs.meta | {"md5": md5(raw["batches.meta"])})
    monkeypatch.setattr(
        Cifar10, "files", put(tmp_path, {"cifar-10-python.tar.gz": stream.getvalue()})
    )
    return tmp_path


@pytest.fixture
def mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The four tiny files, unpacked. Official hashes are patched, and nothing is written."""
    images, labels = PIXELS[:, 0, :28, :28], np.tile(np.arange(10, dtype=np.uint8), 2)
    contents = [images, labels, images[:10], labels[:10]]
    plain = {
        f"MNIST/raw/{name}".removesuffix(".gz"): idx_bytes(np.ascontiguousarray(values))
        for name, values in zip(official.IDX_FILES, contents, strict=True)
    }
    files = tuple(Official(f"{name}.gz", "0" * 32, (), md5(data)) for name, data in plain.items())
    monkeypatch.setattr(Mnist, "files", files)
    return plain
