"""Several processes share a store: each artifact is computed once and read by all, and a dead
process is replaced."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from backdoor_lab.core import store as store_module
from backdoor_lab.core.store import Store

WHOLE = bytes(range(256)) * 8


def make(folder: Path) -> dict[str, Any]:
    (folder / "weights.bin").write_bytes(WHOLE)
    return {"n": 1}


def work_at_once(root: Path, barrier: Any, round_number: int) -> None:
    """What each of several processes does in one round."""

    def make_and_tell(folder: Path) -> dict[str, Any]:
        with (root / "calls").open("a") as stream:
            stream.write(f"{round_number}\n")
        time.sleep(0.02)
        (folder / "weights.bin").write_bytes(WHOLE)
        return {"round": round_number}

    barrier.wait(60)
    entry = Store(root / "store").get("train", {"round": round_number}, make_and_tell)
    assert entry.meta == {"round": round_number}
    assert (entry.path / "weights.bin").read_bytes() == WHOLE


def all_rounds(root: Path, barrier: Any, rounds: int) -> None:
    for number in range(rounds):
        work_at_once(root, barrier, number)


def at_once(root: Path, method: str, rounds: int) -> None:
    """Run all rounds in four processes at the same time. None of them fails."""
    context: Any = multiprocessing.get_context(method)
    barrier = context.Barrier(4)
    processes = [context.Process(target=all_rounds, args=(root, barrier, rounds)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(90)
    assert [process.exitcode for process in processes] == [0] * 4


@pytest.mark.parametrize(("method", "rounds"), [("fork", 8), ("spawn", 3)])
def test_four_concurrent_processes_compute_each_artifact_once(
    tmp_path: Path, method: str, rounds: int
) -> None:
    """The processes start together at a barrier, in several rounds, and leave no temporary
    files."""
    at_once(tmp_path, method, rounds)
    assert (tmp_path / "calls").read_text().split() == [str(number) for number in range(rounds)]
    assert len(list(tmp_path.glob("store/train/*"))) == rounds
    assert not list(tmp_path.glob("store/train/.*"))


def test_of_four_concurrent_processes_only_one_renames_a_damaged_artifact(tmp_path: Path) -> None:
    """The intact artifact that replaces it is never renamed."""
    for number in range(3):
        Store(tmp_path / "store").get("train", {"round": number}, make)
    for path in tmp_path.glob("store/train/*/weights.bin"):
        path.write_bytes(WHOLE[:-1])
    at_once(tmp_path, "fork", 3)
    assert (tmp_path / "calls").read_text().split() == ["0", "1", "2"]
    assert len(list(tmp_path.glob("store/train/.bad-*"))) == 3


def test_another_process_takes_over_the_computation_of_a_killed_process(tmp_path: Path) -> None:
    """The killed process gets SIGKILL in the middle of its computation."""

    def never_ends(folder: Path) -> dict[str, Any]:
        (folder / "half.bin").write_bytes(WHOLE)
        (tmp_path / "started").touch()
        time.sleep(60)
        return {}

    pid = os.fork()
    if pid == 0:
        try:
            Store(tmp_path).get("train", {}, never_ends)
        finally:
            os._exit(1)
    while not (tmp_path / "started").exists():
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    entry = Store(tmp_path).get("train", {}, make)
    assert entry.made
    os.waitpid(pid, 0)
    left = [path for path in tmp_path.glob("train/*") if not path.name.startswith(".part-")]
    assert left == [entry.path]


def test_an_artifact_repaired_by_another_process_is_not_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that found the damage earlier must check the artifact again."""
    store = Store(tmp_path)
    (store.get("train", {}, make).path / "weights.bin").write_bytes(b"")
    look = store_module._lost

    def look_slowly(folder: Path, manifest: dict[str, Any]) -> str | None:
        found = look(folder, manifest)
        monkeypatch.setattr(store_module, "_lost", look)
        assert Store(tmp_path).get("train", {}, make).made
        return found

    monkeypatch.setattr(store_module, "_lost", look_slowly)
    assert not Store(tmp_path).get("train", {}, make).made
    assert len(list(tmp_path.glob("train/.bad-*"))) == 1
