"""Reading takes a bounded amount of memory and time, whatever headers claim."""

from __future__ import annotations

import gzip
import io
import os
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from backdoor_lab.core.errors import DataError
from backdoor_lab.data.arrays import ArrayFile
from backdoor_lab.data.download import Official
from backdoor_lab.data.image_folder import ImageFolder
from tests.helpers.image_files import parts, pictures, tar, zipped

MIB = 1 << 20
# The peak memory beyond that of the imports, as counted by the kernel in a new process.
READ = """
import resource, sys
from backdoor_lab.data.image_folder import ImageFolder
from backdoor_lab.data.arrays import ArrayFile
from backdoor_lab.core.errors import DataError
kind, root = sys.argv[1:]
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
try:
    {"folder": ImageFolder, "arrays": ArrayFile}[kind](root=root).read()
    said = "read"
except DataError as error:
    said = str(error)
print(peak() - before, said)
"""


def peak_of(kind: str, root: Path) -> tuple[int, str]:
    """The peak memory of reading a data set, and the message of the error."""
    command = [sys.executable, "-c", READ, kind, str(root)]
    found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=200)
    peak, _, said = found.stdout.partition(" ")
    return int(peak), said


def claimed_header(kind: bytes, size: int) -> bytes:
    member = tarfile.TarInfo("x")
    member.type, member.size = kind, size
    return member.tobuf(tarfile.GNU_FORMAT)


def monster_png(width: int, height: int) -> bytes:
    """A few bytes that claim to be a very large image."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def padded(zeros: int, count: int) -> dict[str, bytes]:
    """Image files followed by many zeros."""
    found = dict(pictures())
    data = next(iter(found.values()))
    return found | {f"train/cat/big{n}.png": data + bytes(zeros) for n in range(count)}


@pytest.mark.parametrize("count", [2, 12])
def test_memory_does_not_grow_with_the_number_of_padded_images(tmp_path: Path, count: int) -> None:
    path = zipped(tmp_path / "set.zip", padded(40 * MIB, count))
    peak, said = peak_of("folder", path)
    assert said.startswith("read")
    assert peak < 300 * MIB


@pytest.mark.parametrize("ending", ["zip", "tar.gz", "tar.xz"])
def test_an_oversized_archive_member_is_named_and_not_read(tmp_path: Path, ending: str) -> None:
    files = padded(70 * MIB, 1)
    path = tmp_path / f"set.{ending}"
    zipped(path, files) if ending == "zip" else tar(path, files, mode=f"w:{ending[4:]}")
    peak, said = peak_of("folder", path)
    assert "big0.png" in said
    assert "exceed the limit for an image file (67,108,864)" in said
    assert peak < 100 * MIB


@pytest.mark.parametrize(
    "kind", [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE]
)
@pytest.mark.parametrize("mode", ["gz", "xz", "bz2"])
def test_a_tar_header_that_claims_gigabytes_is_refused(
    tmp_path: Path, kind: bytes, mode: str
) -> None:
    path = tmp_path / "set.tar.gz"
    opener: Any = {"gz": gzip.open, "xz": __import__("lzma").open, "bz2": __import__("bz2").open}
    with opener[mode](path, "wb") as stream:
        stream.write(claimed_header(kind, 7 << 30))
        stream.write(bytes(64 * MIB))
    peak, said = peak_of("folder", path)
    assert "longer than 1,048,576 bytes, so the archive is not read" in said
    assert peak < 40 * MIB


def test_the_total_size_of_tar_headers_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "set.tar"
    one = claimed_header(tarfile.GNUTYPE_LONGNAME, MIB // 2) + bytes(MIB // 2)
    path.write_bytes(one * 50)
    with pytest.raises(
        DataError, match=r"set\.tar: the headers of the member near byte .* are longer than"
    ):
        ImageFolder(root=str(path)).read()


def test_a_tar_member_that_claims_gigabytes_is_refused_as_truncated(tmp_path: Path) -> None:
    path = tmp_path / "set.tar.gz"
    with gzip.open(path, "wb") as stream:
        stream.write(claimed_header(tarfile.REGTYPE, 7 << 30))
    peak, said = peak_of("folder", path)
    assert "damaged or truncated" in said
    assert peak < 40 * MIB


@pytest.mark.parametrize("size", [(100_000, 100_000), (9000, 9000)])
def test_an_image_that_claims_to_be_enormous_is_refused_and_named_in_the_error(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    files = pictures() | {"train/cat/x.png": monster_png(*size)}
    peak, said = peak_of("folder", zipped(tmp_path / "set.zip", files))
    assert "train/cat/x.png" in said
    assert peak < 40 * MIB


def test_many_large_images_are_decoded_one_at_a_time(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (6000, 4000), (1, 2, 3)).save(stream, "PNG")
    files = {
        f"{split}/{name}/{n}.png": stream.getvalue()
        for split in ("train", "test")
        for name in "ab"
        for n in range(4)
    }
    zipped(tmp_path / "set.zip", files)
    code = READ.replace("(root=root)", "(root=root, size=8)")
    command = [sys.executable, "-c", code, "folder", str(tmp_path / "set.zip")]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=200).stdout
    assert said.split()[1] == "read"
    assert int(said.split()[0]) < 300 * MIB


def test_a_data_set_larger_than_memory_is_refused_before_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sysconf", lambda name: 10)
    with pytest.raises(DataError, match=r"480 bytes do not fit .*memory \(100\): set `dataset.si"):
        ImageFolder(root=str(zipped(tmp_path / "set.zip", pictures()))).read()


def npz(path: Path, **changed: bytes) -> Path:
    """An .npz file in which some members' bytes are replaced."""
    np.savez_compressed(path, **parts())
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, changed.get(name.removesuffix(".npy"), data))
    return path


def npy_header(shape: tuple[int, ...], extra: int = 0) -> bytes:
    text = repr({"descr": "|u1", "fortran_order": False, "shape": shape}).encode()
    length = len(text) + 1 + extra
    return b"\x93NUMPY\x02\0" + struct.pack("<I", length) + text + b" " * extra + b"\n"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: npy_header((1 << 40, 8, 8, 3)), "header claims"),
        (lambda: npy_header((1 << 20, 32, 32, 3)) + bytes(100), "header claims"),
        (lambda: npy_header((6, 5, 4, 3)) + bytes(361), "header claims"),
        (lambda: npy_header((6, 5, 4, 3), 300 * MIB), "claims to be 314,5"),
        (lambda: b"\x93NUMPY\x02\0" + struct.pack("<I", 0xFFFFFFF0), "claims to be 4,294,967,280"),
    ],
    ids=["terabytes of pixels", "more pixels than bytes", "more bytes than pixels",
         "a header of 300 MiB", "a header of 4 GiB"],
)  # fmt: skip
def test_an_array_with_a_false_header_is_refused(
    tmp_path: Path, make: Callable[[], bytes], message: str
) -> None:
    path = npz(tmp_path / "set.npz", train_images=make())
    peak, said = peak_of("arrays", path)
    assert message in said
    assert str(path) in said
    assert peak < 60 * MIB


def test_arrays_larger_than_memory_are_refused_before_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez_compressed(tmp_path / "set.npz", **parts())
    monkeypatch.setattr(os, "sysconf", lambda name: 10)
    with pytest.raises(DataError, match=r"do not fit into this machine's memory \(100\)"):
        ArrayFile(root=str(tmp_path / "set.npz")).read()


@pytest.mark.parametrize("packed", [True, False])
def test_an_oversized_official_file_is_refused_before_unpacking(
    tmp_path: Path, packed: bool
) -> None:
    """The MD5 of the content could be checked only after unpacking."""
    official = Official("a.gz", "0" * 32, (), "1" * 32)
    if packed:
        (tmp_path / "a.gz").write_bytes(gzip.compress(bytes(600 * MIB), 1))
    else:
        with (tmp_path / "a").open("wb") as stream:
            stream.truncate(600 * MIB)
    before = peak_now()
    assert official.bytes_in(tmp_path) is None
    assert peak_now() - before < 100 * MIB


def peak_now() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_nested_links_with_exponentially_many_paths_are_refused(tmp_path: Path) -> None:
    """Thirteen folders with four links each to the next one have 4**13 paths."""
    for depth in range(13):
        (tmp_path / f"hub/{depth}").mkdir(parents=True)
        for number in range(4):
            (tmp_path / f"hub/{depth}/{number}").symlink_to(tmp_path / f"hub/{depth + 1}")
    (tmp_path / "set/train").mkdir(parents=True)
    (tmp_path / "set/train/cat").symlink_to(tmp_path / "hub/0")
    with pytest.raises(DataError, match=r"set: links point more than 1,000 times to folders"):
        ImageFolder(root=str(tmp_path / "set")).fingerprint()


def test_too_many_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backdoor_lab.data.members.MAX_FILES", 9)
    for name, data in pictures().items():
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(data)
    archives = [zipped(tmp_path / "set.zip", pictures()), tar(tmp_path / "set.tar", pictures())]
    for root in (tmp_path / "set", *archives):
        with pytest.raises(DataError, match=r"set.*: contains more than 9 files and folders"):
            ImageFolder(root=str(root)).read()
