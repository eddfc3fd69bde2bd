"""Atomic writes: a reader sees either the whole new file or the whole old one, and a full disk
raises StoreFullError."""

from __future__ import annotations

import errno
import json
import os
import resource
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backdoor_lab.core import atomic_io
from backdoor_lab.core.atomic_io import canonical, digest, room, write_atomic
from backdoor_lab.core.errors import StoreError, StoreFullError
from backdoor_lab.core.small_files import write_json

NO_ROOM = [errno.ENOSPC, errno.EDQUOT, errno.EFBIG]


def no_room(number: int = errno.ENOSPC) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def in_a_child(work: Callable[[], bool]) -> bool:
    """Whether `work`, run in a forked process, returned true."""
    pid = os.fork()
    if pid == 0:
        good = False
        try:
            good = work()
        finally:
            os._exit(0 if good else 1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_canonical_json_does_not_depend_on_key_order() -> None:
    """NaN and arbitrary objects are refused."""
    assert canonical({"b": [1, 2.5], "a": None}) == '{"a":null,"b":[1,2.5]}'
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest({"a": 1}) != digest({"a": "1"}) != digest({"a": 1.5})
    assert len(digest(1, 10)) == 10
    for bad in (float("nan"), float("inf"), {"a": [float("nan")]}):
        with pytest.raises(ValueError, match=r"(?i)not JSON compliant"):
            canonical(bad)
    with pytest.raises(TypeError):
        canonical({"a": Path("x")})


def test_writing_creates_the_folder_and_replaces_the_whole_file(tmp_path: Path) -> None:
    """No other file is left behind."""
    path = tmp_path / "a/b/record.json"
    write_json(path, {"nat1": 0.5})
    write_json(path, {"nat1": None})
    assert json.loads(path.read_text()) == {"nat1": None}
    assert [each.name for each in path.parent.iterdir()] == ["record.json"]
    assert stat.S_ISREG(path.stat().st_mode)


def test_a_list_of_numbers_is_written_on_one_line(tmp_path: Path) -> None:
    """A curve of a thousand points therefore takes one line. Text that looks like a list is
    unchanged."""
    value = {
        "curve": [[0.0, 1e-05, -3], []], "points": [None, True, 2.5], "names": ["a b", "c"],
        "text": "[\n 1,\n  2\n]", "of": [{"x": [1]}],
    }  # fmt: skip
    write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == value
    assert '"points": [null, true, 2.5],\n' in text
    assert "[0.0, 1e-05, -3],\n" in text


def test_nan_is_never_written_to_json(tmp_path: Path) -> None:
    """NaN is not valid JSON. The old file is kept."""
    path = tmp_path / "record.json"
    write_json(path, {"nat1": 1})
    with pytest.raises(ValueError, match=r"(?i)not JSON compliant"):
        write_json(path, {"nat1": float("nan")})
    assert json.loads(path.read_text()) == {"nat1": 1}


def test_the_file_is_synced_before_it_is_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The content is synced first, then the file is renamed within the folder, and then the folder
    is synced."""
    told: list[str] = []
    fsync, replace = os.fsync, os.replace

    def spy_fsync(handle: int) -> None:
        told.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        fsync(handle)

    def spy_replace(source: Path, target: Path) -> None:
        assert Path(source).parent == Path(target).parent
        told.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "replace", spy_replace)
    write_atomic(tmp_path / "x", b"data")
    assert told == ["file", "rename", "folder"]


def test_leftover_temporary_files_do_not_block_a_write(tmp_path: Path) -> None:
    for name in (".x.0123456789ab.part", ".x.part", "x.tmp"):
        (tmp_path / name).write_bytes(b"half")
    write_atomic(tmp_path / "x", b"whole")
    assert (tmp_path / "x").read_bytes() == b"whole"


@pytest.mark.parametrize("number", NO_ROOM)
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_keeps_the_old_file_and_leaves_no_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    """StoreFullError names the required and free bytes and the path."""
    path = tmp_path / "x"
    write_atomic(path, b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, call, no_room(number))
        with pytest.raises(
            StoreFullError, match=r"x: not enough disk space: 1,234 bytes needed, [\d,]+ bytes free"
        ):
            write_atomic(path, b"n" * 1234)
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["x"]


def test_a_full_disk_while_creating_the_folder_raises_store_full_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "mkdir", no_room())
    with pytest.raises(StoreFullError, match="not enough disk space"):
        write_atomic(tmp_path / "new/x", b"data")


@pytest.mark.parametrize("limit", [0, 1, 4095, 4096, 9999])
def test_a_write_beyond_a_file_size_limit_keeps_the_old_file_and_leaves_no_part_of_the_new_one(
    tmp_path: Path, limit: int
) -> None:
    """RLIMIT_FSIZE stands in for a full disk."""
    path = tmp_path / "x"
    write_atomic(path, b"old")

    def write_too_much() -> bool:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            write_atomic(path, b"n" * 10_000)
        except StoreFullError:
            return True
        return False

    assert in_a_child(write_too_much)
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["x"]


def test_only_a_lack_of_space_raises_a_store_full_error(tmp_path: Path) -> None:
    """Only a lack of space becomes StoreFullError. Other errors name the path."""
    with pytest.raises(StoreError, match="cannot use /a/b: no") as found, room(tmp_path / "x"):
        raise PermissionError(errno.EACCES, "no", "/a/b")
    assert not isinstance(found.value, StoreFullError)
    with pytest.raises(ChildProcessError), room(tmp_path / "x"):
        raise ChildProcessError(errno.ECHILD, "no")
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"(?i)not a directory|exists"):
        atomic_io.write_atomic(tmp_path / "file/x", b"")
