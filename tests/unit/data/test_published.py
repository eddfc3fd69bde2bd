"""Published data sets, with tiny files under the official names and patched hashes."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import socket
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from backdoor_lab.core.errors import ConfigError, DataError
from backdoor_lab.data import official
from backdoor_lab.data.download import Official, obtain
from backdoor_lab.data.torchvision_sets import (
    Cifar10,
    Cifar100,
    FashionMnist,
    Gtsrb,
    Mnist,
    Published,
    Svhn,
    idx,
)
from tests.helpers.published import PIXELS, idx_bytes, md5, put

# --- pinned hashes


def test_official_hashes_equal_those_of_torchvision() -> None:
    import inspect

    from torchvision import datasets

    for ours, theirs in (
        (official.CIFAR10, datasets.CIFAR10),
        (official.CIFAR100, datasets.CIFAR100),
    ):
        assert [(file.path, file.md5, file.urls) for file in ours] == [
            (theirs.filename, theirs.tgz_md5, (theirs.url,))
        ]
    for files, cls in (
        (official.MNIST, datasets.MNIST),
        (official.FASHION_MNIST, datasets.FashionMNIST),
    ):
        assert [(file.path.split("/")[-1], file.md5) for file in files] == cls.resources
        assert all(file.path.startswith(f"{cls.__name__}/raw/") for file in files)
        assert list(files[0].urls) == [mirror + cls.resources[0][0] for mirror in cls.mirrors]
    svhn = [datasets.SVHN.split_list[split] for split in ("train", "test")]
    assert [[file.urls[0], file.path, file.md5] for file in official.SVHN] == svhn
    source = inspect.getsource(datasets.GTSRB)
    for file in official.GTSRB:
        assert file.md5 in source
        assert file.path.removeprefix("gtsrb/") in source
    assert len(official.GTSRB_CLASSES) == len(set(official.GTSRB_CLASSES)) == 43


# --- CIFAR


def test_cifar_is_unpacked_once_and_read(cifar: Path) -> None:
    arrays = Cifar10(root=str(cifar), download=False).read()
    np.testing.assert_array_equal(arrays.train.images, PIXELS)
    assert arrays.test.labels.tolist() == [1, 0, 1, 0]
    assert arrays.classes == ("airplane", "bird")
    (cifar / "cifar-10-python.tar.gz").unlink()
    assert len(Cifar10(root=str(cifar), download=False).read().train.labels) == 20


def test_a_pickled_batch_with_another_hash_is_never_loaded(cifar: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(cifar / "marker"),)

    source = Cifar10(root=str(cifar), download=False)
    source.read()
    (cifar / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps(Trap()))
    assert len(source.read().test.labels) == 4, "the archive was not unpacked again"
    (cifar / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps(Trap()))
    (cifar / "cifar-10-python.tar.gz").unlink()
    with pytest.raises(DataError, match=r"cifar-10-python.tar.gz is missing"):
        source.read()
    assert not (cifar / "marker").exists()


def test_a_truncated_archive_is_refused(cifar: Path) -> None:
    path = cifar / "cifar-10-python.tar.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"is damaged and dataset.download is false.*\(md5 "):
        Cifar10(root=str(cifar), download=False).read()


# --- the IDX sets


@pytest.mark.parametrize("packed", [True, False])
def test_mnist_is_read_from_compressed_and_uncompressed_files(
    tmp_path: Path, mnist: dict[str, bytes], packed: bool
) -> None:
    put(tmp_path, {f"{n}.gz": gzip.compress(d) for n, d in mnist.items()} if packed else mnist)
    arrays = Mnist(root=str(tmp_path), download=False).read()
    np.testing.assert_array_equal(arrays.train.images[:, 0], PIXELS[:, 0, :28, :28])
    assert arrays.test.labels.tolist() == list(range(10))


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
@pytest.mark.parametrize("packed", [True, False])
def test_a_damaged_idx_file_is_refused(
    tmp_path: Path, mnist: dict[str, bytes], packed: bool, damage: str
) -> None:
    files = {f"{n}.gz": gzip.compress(d) for n, d in mnist.items()} if packed else dict(mnist)
    name = next(iter(files))
    data = files[name]
    flipped = data[:-20] + bytes([data[-20] ^ 4]) + data[-19:]
    files[name] = {"cut": data[:-5], "flipped": flipped, "empty": b""}[damage]
    put(tmp_path, files)
    with pytest.raises(DataError, match=r"MNIST/raw/train-images-idx3-ubyte.gz is (damaged|miss)"):
        Mnist(root=str(tmp_path), download=False).read()


def test_invalid_idx_files_are_refused() -> None:
    whole = idx_bytes(np.zeros((2, 3), np.uint8))
    assert idx(whole, "x").shape == (2, 3)
    for bad in (b"", whole[:-1], whole + b"\0", b"\0\0\x0d" + whole[3:], whole[:6]):
        with pytest.raises(DataError, match="not a valid IDX file"):
            idx(bad, "x")


def test_fashion_mnist_has_ten_classes_and_class_7_is_sneaker() -> None:
    assert len(FashionMnist.classes) == 10
    assert FashionMnist.classes.index("sneaker") == 7


# --- SVHN and GTSRB


def test_label_10_of_svhn_becomes_class_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy.io import savemat

    files = {}
    for name, count in (("train_32x32.mat", 20), ("test_32x32.mat", 10)):
        stream = io.BytesIO()
        labels = np.tile(np.arange(1, 11, dtype=np.uint8), 2)[:count, None]
        savemat(stream, {"X": PIXELS[:count].transpose(2, 3, 1, 0), "y": labels})
        files[name] = stream.getvalue()
    monkeypatch.setattr(Svhn, "files", put(tmp_path, files))
    arrays = Svhn(root=str(tmp_path), download=False).read()
    np.testing.assert_array_equal(arrays.train.images, PIXELS)
    assert arrays.test.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
    (tmp_path / "test_32x32.mat").write_bytes(files["test_32x32.mat"][:-1])
    with pytest.raises(DataError, match=r"test_32x32.mat is damaged"):
        Svhn(root=str(tmp_path), download=False).read()


def zipped(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return stream.getvalue()


def sign(value: int, size: tuple[int, int]) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, (value, 0, 0)).save(stream, "PPM")
    return stream.getvalue()


def test_gtsrb_is_read_from_its_archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = "Filename;Width;ClassId\n00000.ppm;9;42\n00001.ppm;9;0\n"
    training = {f"GTSRB/Training/{k:05}/00_0.ppm": sign(k, (9 + k, 8)) for k in (42, 0)}
    archives = {
        "gtsrb/GTSRB-Training_fixed.zip": zipped(training | {"GTSRB/Training/GT.csv": b"x"}),
        "gtsrb/GTSRB_Final_Test_Images.zip": zipped(
            {f"GTSRB/Final_Test/Images/0000{k}.ppm": sign(k + 7, (30, 31)) for k in (1, 0)}
        ),
        "gtsrb/GTSRB_Final_Test_GT.zip": zipped({"GT-final_test.csv": table.encode()}),
    }
    monkeypatch.setattr(Gtsrb, "files", put(tmp_path, archives))
    source = Gtsrb(root=str(tmp_path), size=4, download=False)
    arrays = source.read()
    assert arrays.train.images.shape == (2, 3, 4, 4)
    assert arrays.train.images[:, 0, 0, 0].tolist() == [0, 42] == arrays.train.labels.tolist()
    assert arrays.test.images[:, 0, 0, 0].tolist() == [7, 8]
    assert arrays.test.labels.tolist() == [42, 0]
    assert source.fingerprint() != Gtsrb(root=str(tmp_path), size=5).fingerprint()


# --- downloads


class Server(ThreadingHTTPServer):
    """Serves `answers` by path and records the requests."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, bytes] = {}
        self.asked: list[str] = []

    def official(self, name: str, data: bytes, *, claimed: bytes | None = None) -> Official:
        self.answers[f"/{name}"] = data
        url = f"http://127.0.0.1:{self.server_address[1]}/{name}"
        return Official(name, md5(data if claimed is None else claimed), (url,))


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        data = self.server.answers.get(self.path)
        self.send_response(200 if data is not None else 404)
        self.send_header("Content-Length", str(len(data or b"")))
        self.end_headers()
        self.wfile.write(data or b"")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}).start()
        yield running
        running.shutdown()


def get(root: Path, *files: Official, download: bool = True) -> None:
    def ready() -> bool:
        return all(file.found_in(root) for file in files)

    obtain("tiny", root, files, download=download, ready=ready)


def test_a_missing_file_is_downloaded_once(tmp_path: Path, server: Server) -> None:
    file = server.official("a.bin", b"good")
    get(tmp_path / "new", file)
    assert (tmp_path / "new" / "a.bin").read_bytes() == b"good"
    asked = len(server.asked)
    get(tmp_path / "new", file)
    assert len(server.asked) == asked


def test_a_partial_download_is_downloaded_again(tmp_path: Path, server: Server) -> None:
    file = server.official("a.bin", b"good data")
    (tmp_path / "a.bin").write_bytes(b"good d")
    get(tmp_path, file)
    assert (tmp_path / "a.bin").read_bytes() == b"good data"


def test_the_second_mirror_is_tried_if_the_first_one_fails(tmp_path: Path, server: Server) -> None:
    file = server.official("a.bin", b"good")
    get(tmp_path, Official(file.path, file.md5, (file.urls[0] + "x", *file.urls)))
    assert file.found_in(tmp_path)


def test_a_download_with_a_wrong_hash_raises_one_error_naming_folder_file_and_hash(
    tmp_path: Path, server: Server
) -> None:
    good, bad = server.official("a.bin", b"good"), server.official("b.bin", b"evil", claimed=b"ok")
    with pytest.raises(DataError) as caught:
        get(tmp_path, good, bad)
    for part in (str(tmp_path), "b.bin", md5(b"ok"), "python -m backdoor_lab experiment=demo"):
        assert part in str(caught.value)
    with pytest.raises(DataError, match="404"):
        get(tmp_path, Official("c", "0" * 32, (good.urls[0] + "x",)))


def test_two_concurrent_threads_download_a_file_once(tmp_path: Path, server: Server) -> None:
    file = server.official("a.bin", b"good" * 1000)
    get(tmp_path / "alone", file)
    asked = len(server.asked)
    barrier = threading.Barrier(2)
    failed: list[BaseException] = []

    def one() -> None:
        barrier.wait()
        try:
            get(tmp_path / "both", file)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert len(server.asked) == 2 * asked


def test_a_silent_server_times_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backdoor_lab.data.download.TIMEOUT", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"http://127.0.0.1:{mute.getsockname()[1]}/a"
        with pytest.raises(DataError, match="timed out"):
            get(tmp_path, Official("a", "0" * 32, (url,)))
    assert socket.getdefaulttimeout() is None


@pytest.mark.parametrize("kind", [Cifar10, Cifar100, Mnist, FashionMnist, Svhn, Gtsrb])
def test_without_a_network_connection_one_error_lists_the_files_and_their_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Published]
) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    with pytest.raises(DataError) as caught:
        kind(root=str(tmp_path / "none")).read()
    message = str(caught.value)
    for file in kind.files:
        assert f"{file.path} (md5 {file.md5})" in message
    assert "Name or service not known" in message
    assert str(tmp_path / "none") in message
    assert message.endswith("python -m backdoor_lab experiment=demo")
    with pytest.raises(DataError, match=r"dataset.download=true"):
        kind(root=str(tmp_path / "none"), download=False).read()


def test_a_root_that_cannot_be_created_raises_data_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="Expected in that folder"):
        Mnist(root=str(tmp_path / "file" / "below")).read()


def test_complete_data_is_read_without_taking_a_lock(
    tmp_path: Path, mnist: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, mnist)
    monkeypatch.setattr("backdoor_lab.data.download.FileLock", None)  # Using it would fail.
    assert len(Mnist(root=str(tmp_path)).read().train.labels) == 20


@pytest.mark.parametrize(
    "parameters", [{"root": ""}, {"download": "yes"}, {"limit_train": 0}, {"name": "/"}]
)
def test_bad_parameters_raise_config_error(parameters: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Mnist(**parameters)
    with pytest.raises(ConfigError, match="size"):
        Gtsrb(size=0)
