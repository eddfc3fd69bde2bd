"""Small files in any state: none blocks a reader, exhausts memory or stops a cell."""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backdoor_lab.core import small_files
from backdoor_lab.core.errors import StoreError
from backdoor_lab.core.lease import Lease
from backdoor_lab.core.small_files import (
    DamagedFileError,
    UnreadableFileError,
    decode,
    read_json,
    read_or_set_aside,
    set_aside,
    write_ours,
)
from backdoor_lab.core.store import MANIFEST, Store
from tests.helpers.cells import lasting, run_here
from tests.helpers.obstacles import FILES, TEXTS, obstacle


def aside(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob(".bad-*"))


@pytest.mark.parametrize("what", FILES)
def test_the_error_for_anything_but_a_regular_file_states_the_kind_of_file(
    what: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.json"
    obstacle(path, what)
    with pytest.raises(DamagedFileError, match="x.json is a"):
        read_json(path)
    assert os.path.lexists(path)


def test_a_socket_is_refused(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "x"))
        with pytest.raises(DamagedFileError, match="is a socket"):
            read_json(tmp_path / "x")


def test_a_missing_file_is_not_reported_as_damaged(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("{}")
    for path in (tmp_path / "x", tmp_path / "no/x", tmp_path / "file/x"):
        with pytest.raises(FileNotFoundError):
            read_json(path)
        assert read_or_set_aside(path) is None
    assert aside(tmp_path) == []


def test_a_link_to_a_file_is_followed(tmp_path: Path) -> None:
    (tmp_path / "there").write_text('{"a": 1}')
    (tmp_path / "x").symlink_to("there")
    assert read_or_set_aside(tmp_path / "x") == {"a": 1}


def test_json_files_that_are_too_large_or_too_deep_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with path.open("wb") as stream:
        stream.truncate(10**12)
    with pytest.raises(DamagedFileError, match="larger than 67,108,864 bytes"):
        read_json(path)
    deepest = small_files.MAX_DEPTH
    assert decode(b"[" * deepest + b"]" * deepest)
    assert decode(b'{"a":' * deepest + b"1" + b"}" * deepest)
    assert len(decode(b"[" + b"[]," * 1000 + b"[]]")) == 1001
    for depth in (deepest + 1, 500, 100_000):
        with pytest.raises(DamagedFileError, match="nested"):
            decode(b"[" * depth + b"]" * depth)
    with pytest.raises(DamagedFileError, match="nested"):
        decode(b'{"a":' * (deepest + 1) + b"1" + b"}" * (deepest + 1))


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b'{"a": 1, "a": 2}', b"9" * 5000])
def test_invalid_json_is_refused(data: bytes) -> None:
    with pytest.raises(DamagedFileError, match="not valid JSON"):
        decode(data)


def test_a_file_that_cannot_be_opened_is_not_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be intact: a process out of file descriptors must not rename it."""
    path = tmp_path / "x"
    path.write_text("{}")

    def refuse(*_: Any, **__: Any) -> int:
        raise OSError(24, "Too many open files", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises(UnreadableFileError, match=r"x cannot be read \(Too many open files\)"):
            read_or_set_aside(path)
    assert aside(tmp_path) == []


def test_a_file_that_cannot_be_renamed_raises_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    path.mkdir()

    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(StoreError, match=r"x: a directory.*Permission denied.*: remove it"):
        read_or_set_aside(path)


def test_setting_a_file_aside_keeps_an_intact_file_that_replaced_the_damaged_one(
    tmp_path: Path,
) -> None:
    path = tmp_path / "x"
    path.write_text("damaged")
    seen = os.lstat(path).st_ino
    (tmp_path / "new").write_text("sound")
    os.replace(tmp_path / "new", path)
    set_aside(path, "damaged", seen)
    assert path.read_text() == "sound"


@pytest.mark.parametrize("what", FILES)
def test_writing_a_file_replaces_anything_at_its_path(what: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    obstacle(path, what)
    write_ours(path, b"new")
    assert path.read_bytes() == b"new"
    assert not path.is_symlink()


@pytest.mark.parametrize("what", [*FILES, *TEXTS])
def test_an_invalid_lease_is_set_aside_without_waiting(
    what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The log has one line about it."""
    path = tmp_path / "x.claim"
    obstacle(path, what)

    def sleep(_: float) -> None:
        raise AssertionError("nobody holds this claim")

    claim = Lease(path, clock=lambda: 0.0, sleep=sleep)
    assert claim.acquire(lambda: False)
    claim.release()
    assert len(aside(tmp_path)) == 1
    assert [record.message.count(".bad-x.claim-") for record in caplog.records] == [1]
    assert not os.path.lexists(path)


def made(folder: Path) -> dict[str, Any]:
    (folder / "weights.bin").write_bytes(b"w" * 100)
    return {"n": 1}


def entry_of(root: Path) -> Path:
    return Store(root).get("train", {"a": 1}, made).path


def empty(path: Path) -> Path:
    """The path, after removing what is there."""
    if path.is_dir():
        for each in path.iterdir():
            each.unlink()
        path.rmdir()
    else:
        path.unlink()
    return path


PLACES: dict[str, Callable[[Path], Path]] = {
    "manifest": lambda entry: empty(entry / MANIFEST),
    "entry": empty,
    "file of the stage": lambda entry: empty(entry / "weights.bin"),
}


# An entry is a directory itself, so a directory in its place is not an obstacle.
@pytest.mark.parametrize(
    ("place", "what"),
    [(p, w) for p in PLACES for w in [*FILES, *TEXTS] if (p, w) != ("entry", "directory")],
)
def test_an_obstacle_at_the_path_of_a_stored_file_is_renamed_and_the_file_is_recomputed(
    place: str, what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    obstacle(PLACES[place](entry_of(tmp_path)), what)
    found = Store(tmp_path).get("train", {"a": 1}, made)
    assert found.made
    assert len(aside(tmp_path)) == 1
    assert len([r for r in caplog.records if "computed again" in r.message]) == 1
    assert not Store(tmp_path).get("train", {"a": 1}, made).made


@pytest.mark.parametrize("what", [each for each in FILES if each != "directory"])
def test_a_file_in_place_of_a_stage_or_scratch_folder_is_renamed(what: str, tmp_path: Path) -> None:
    obstacle(tmp_path / "train", what)
    assert entry_of(tmp_path).is_dir()
    scratch = Store(tmp_path).scratch("train", {"a": 2})
    obstacle(scratch, what)

    def into_scratch(folder: Path) -> dict[str, Any]:
        scratch.mkdir()
        return made(folder)

    assert Store(tmp_path).get("train", {"a": 2}, into_scratch).made
    assert len(aside(tmp_path)) == 2


@pytest.mark.parametrize("what", [*FILES, *TEXTS])
def test_a_read_only_store_does_not_rename_damaged_files(what: str, tmp_path: Path) -> None:
    path = empty(entry_of(tmp_path) / MANIFEST)
    obstacle(path, what)
    assert Store(tmp_path, read_only=True).find("train", {"a": 1}) is None
    assert aside(tmp_path) == []
    assert os.path.lexists(path)


@pytest.mark.parametrize("what", [*FILES, *TEXTS])
def test_an_invalid_checkpoint_is_set_aside_and_ignored(
    what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from backdoor_lab.training.train import last_checkpoint

    obstacle(tmp_path / "epoch=1.ckpt", what)
    with caplog.at_level(logging.WARNING):
        assert last_checkpoint(tmp_path) is None
    assert len(aside(tmp_path)) == 1
    assert "checkpoint cannot be used" in caplog.text


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A store with every stage of a cell, and the cell's record."""
    root = tmp_path_factory.mktemp("usual")
    return root / "store", lasting(run_here(root / "store", root / "cell"))


@pytest.mark.parametrize("what", [*FILES, *TEXTS])
def test_a_cell_replaces_anything_at_the_path_of_its_record(
    what: str, usual: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """This holds even if the obstacle appears while the cell runs."""
    (tmp_path / "cell").mkdir()
    obstacle(tmp_path / "cell/record.json", what)
    assert lasting(run_here(usual[0], tmp_path / "cell")) == usual[1]
    assert json.loads((tmp_path / "cell/record.json").read_text())["status"] == "done"


@pytest.mark.parametrize("what", FILES)
def test_a_cell_completes_if_its_heartbeat_cannot_be_written(
    what: str, usual: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "cell").mkdir()
    obstacle(tmp_path / "cell/running.json", what)
    assert run_here(usual[0], tmp_path / "cell")["status"] == "done"
    assert not list((tmp_path / "cell").glob("*.part"))


def test_a_duplicate_key_is_found_in_linear_time() -> None:
    """Counting the occurrences of each of a million keys would take days."""
    text = ",".join(f'"{number}": 0' for number in range(10**6))
    with pytest.raises(DamagedFileError, match="duplicate key '7'"):
        decode(f'{{{text}, "7": 1}}'.encode())
