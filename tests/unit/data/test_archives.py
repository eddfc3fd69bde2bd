"""Image archives: read without unpacking; hostile and damaged ones are refused (rows 6 and 17 of
the fault table)."""

from __future__ import annotations

import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from backdoor_lab.core.errors import DataError
from backdoor_lab.data.image_folder import ImageFolder
from tests.helpers.image_files import pictures, tar, zipped

ENDINGS = {".tar": "w", ".tar.gz": "w:gz", ".tgz": "w:gz", ".tar.xz": "w:xz"}


def link(
    kind: bytes, name: str = "train/cat/9.png", target: str = "/etc/passwd"
) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def zip_link(name: str) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name)
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    return member


@pytest.mark.parametrize("ending", [*ENDINGS, ".zip"])
@pytest.mark.parametrize("wrap", ["", "around/", "./"])
def test_every_archive_format_gives_the_same_images_as_the_folder(
    tmp_path: Path, ending: str, wrap: str
) -> None:
    files = pictures()
    for name, data in files.items():
        (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / name).write_bytes(data)
    expected = ImageFolder(root=str(tmp_path / "folder")).read()
    turned = {wrap + name: files[name] for name in reversed(files)}
    path = tmp_path / f"set{ending}"
    (tar(path, turned, mode=ENDINGS[ending]) if ending in ENDINGS else zipped(path, turned))
    before = set(tmp_path.rglob("*"))
    found = ImageFolder(root=str(path)).read()
    np.testing.assert_array_equal(found.train.images, expected.train.images)
    np.testing.assert_array_equal(found.test.images, expected.test.images)
    np.testing.assert_array_equal(found.train.labels, expected.train.labels)
    assert set(tmp_path.rglob("*")) == before, "something was unpacked"


@pytest.mark.parametrize(
    "member",
    [
        tarfile.TarInfo("../train/cat/x.png"),
        tarfile.TarInfo("train/../../x.png"),
        tarfile.TarInfo("/train/cat/x.png"),
        tarfile.TarInfo("train\\..\\x.png"),
        tarfile.TarInfo("C:/x.png"),
        link(tarfile.SYMTYPE),
        link(tarfile.LNKTYPE),
        link(tarfile.CHRTYPE),
        link(tarfile.BLKTYPE),
        link(tarfile.FIFOTYPE),
        link(tarfile.SYMTYPE, "README", "train"),
        tarfile.TarInfo("train/cat/0.png"),
    ],
    ids=lambda member: f"{member.name}-{member.type!r}",
)
def test_hostile_tar_members_are_refused_and_named_in_the_error(
    tmp_path: Path, member: tarfile.TarInfo
) -> None:
    path = tar(tmp_path / "set.tar", pictures(), member)
    with pytest.raises(DataError) as caught:
        ImageFolder(root=str(path)).read()
    assert repr(member.name) in str(caught.value)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "make",
    [
        lambda: zipfile.ZipInfo("../train/cat/x.png"),
        lambda: zipfile.ZipInfo("/train/cat/x.png"),
        lambda: zipfile.ZipInfo("train/cat/../../../x.png"),
        lambda: zip_link("train/cat/x.png"),
        lambda: zipfile.ZipInfo("train/cat/0.png"),
    ],
    ids=["parent folder", "absolute path", "parent folder in the middle", "link", "duplicate name"],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_hostile_zip_members_are_refused_and_named_in_the_error(
    tmp_path: Path, make: Callable[[], zipfile.ZipInfo]
) -> None:
    member = make()
    path = zipped(tmp_path / "set.zip", pictures(), member)
    with pytest.raises(DataError) as caught:
        ImageFolder(root=str(path)).read()
    assert repr(member.filename) in str(caught.value)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("ending", [*ENDINGS, ".zip"])
def test_a_truncated_archive_is_refused(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"set{ending}"
    tar(path, pictures(), mode=ENDINGS[ending]) if ending in ENDINGS else zipped(path, pictures())
    whole = path.read_bytes()
    for cut in {*range(0, len(whole), len(whole) // 16), len(whole) - 1}:
        # A tar ends with many zeros. It is complete if it has the first block of them.
        if ending == ".tar" and not whole[cut - 512 :].strip(b"\0"):
            continue
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError, match="damaged or truncated"):
            ImageFolder(root=str(path)).read()


@pytest.mark.parametrize("ending", [".tar", ".tar.gz", ".tar.xz", ".zip"])
def test_flipped_bits_raise_an_error_or_leave_the_data_unchanged(
    tmp_path: Path, ending: str
) -> None:
    path = tmp_path / f"set{ending}"
    tar(path, pictures(), mode=ENDINGS[ending]) if ending in ENDINGS else zipped(path, pictures())
    whole, rng = path.read_bytes(), np.random.default_rng(1)
    good = ImageFolder(root=str(path)).read()
    for place in rng.integers(0, len(whole), 40):
        broken = bytearray(whole)
        broken[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(broken)
        try:
            found = ImageFolder(root=str(path)).read()
        except DataError:
            continue
        np.testing.assert_array_equal(found.train.images, good.train.images)
        np.testing.assert_array_equal(found.test.labels, good.test.labels)


def inside(path: Path) -> list[int]:
    """For each image, a position in the middle of its data. For a compressed tar, only the middle
    of the file."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            return [m.header_offset + 30 + len(m.filename) + m.compress_size // 2
                    for m in archive.infolist()]  # fmt: skip
    if path.suffix == ".tar":
        with tarfile.open(path) as archive:
            return [m.offset_data + m.size // 2 for m in archive.getmembers()]
    return [path.stat().st_size // 2]


@pytest.mark.parametrize("ending", [*ENDINGS, ".zip"])
def test_every_flipped_bit_in_image_data_is_detected(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"set{ending}"
    tar(path, pictures(), mode=ENDINGS[ending]) if ending in ENDINGS else zipped(path, pictures())
    whole = path.read_bytes()
    for place in inside(path):
        for bit in range(8):
            broken = bytearray(whole)
            broken[place] ^= 1 << bit
            path.write_bytes(broken)
            with pytest.raises(DataError):
                ImageFolder(root=str(path)).read()


def test_data_after_the_end_of_a_tar_is_refused(tmp_path: Path) -> None:
    path = tar(tmp_path / "set.tar", pictures())
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(DataError, match="data after the end-of-archive marker"):
        ImageFolder(root=str(path)).read()


def test_an_oversized_archive_member_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backdoor_lab.data.limits.MAX_BYTES", 1000)
    path = zipped(tmp_path / "set.zip", pictures() | {"train/cat/9.png": bytes(1001)})
    with pytest.raises(DataError, match="1,001 bytes exceed the limit for an image file"):
        ImageFolder(root=str(path)).read()


def test_the_fingerprint_of_an_archive_depends_on_its_bytes_not_its_name(tmp_path: Path) -> None:
    path, other = tmp_path / "a.zip", tmp_path / "b.zip"
    zipped(path, pictures())
    other.write_bytes(path.read_bytes())
    fingerprint = ImageFolder(root=str(path)).fingerprint()
    assert ImageFolder(root=str(other)).fingerprint() == fingerprint
    assert ImageFolder(root=str(path), size=2).fingerprint() != fingerprint
    zipped(other, pictures() | {"README": b"x"})
    assert ImageFolder(root=str(other)).fingerprint() != fingerprint
