"""Leases have one owner at a time. A dead owner is replaced at once, a silent one after a
timeout."""

from __future__ import annotations

import errno
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backdoor_lab.core import lease
from backdoor_lab.core.lease import Lease, machine


class Clock:
    """A clock that advances only by sleeping. `during` is called in every sleep."""

    def __init__(self, during: Callable[[], None] = lambda: None) -> None:
        self.now, self.during = 1000.0, during

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds
        self.during()


def claim(path: Path, clock: Clock, patience: float = 60.0) -> Lease:
    return Lease(path, patience=patience, clock=clock, sleep=clock.sleep)


def never() -> bool:
    return False


def owned_by(path: Path, **changes: Any) -> None:
    """Write the lease file of another process, by default the parent of this one."""
    parent = os.getppid()
    owner = {"machine": machine(), "pid": parent, "start": lease._start_of(parent)}
    path.write_text(json.dumps(owner | {"token": "theirs", "beat": 0} | changes))


def child(work: Callable[[], None]) -> int:
    """A forked process that runs `work` and then waits to be killed."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            time.sleep(60)
        finally:
            os._exit(1)
    return pid


def until(true: Callable[[], object]) -> None:
    for _ in range(2000):
        if true():
            return
        time.sleep(0.005)
    raise AssertionError("waited for 10 s")


def test_the_lease_file_exists_exactly_while_the_lease_is_held(tmp_path: Path) -> None:
    """The file names the owner of the lease."""
    path = tmp_path / "x.claim"
    mine = claim(path, Clock())
    assert mine.acquire(never)
    assert json.loads(path.read_text())["pid"] == os.getpid()
    mine.release()
    assert list(tmp_path.iterdir()) == []


def test_a_process_stops_waiting_when_the_result_is_published(tmp_path: Path) -> None:
    """The process that computed the result keeps its lease."""
    path = tmp_path / "x.claim"
    owned_by(path)
    published: list[bool] = []
    clock = Clock(during=lambda: published.append(True))
    assert not claim(path, clock).acquire(lambda: len(published) > 3)
    assert "theirs" in path.read_text()


def test_a_lease_with_a_live_owner_is_never_taken_over(tmp_path: Path) -> None:
    """This holds however long the owner works, as long as its heartbeat continues."""
    path = tmp_path / "x.claim"
    beats = [0]

    def beat() -> None:
        beats[0] += 1
        owned_by(path, beat=beats[0])

    owned_by(path)
    clock = Clock(during=beat)
    assert not claim(path, clock).acquire(lambda: clock.now > 1300)
    assert beats[0] > 100


@pytest.mark.parametrize("beats", [0, 40])
def test_the_lease_of_a_silent_process_on_another_machine_is_taken_over_after_the_timeout(
    tmp_path: Path, beats: int
) -> None:
    """Process ids of another machine cannot be checked. The waiting process measures the time since
    the last heartbeat with its own clock."""
    path = tmp_path / "x.claim"
    left = [beats]

    def beat() -> None:
        if left[0]:
            left[0] -= 1
            last.append(clock.now)
            owned_by(path, machine="elsewhere", pid=2**22 + 1, beat=left[0])

    clock = Clock(during=beat)
    last = [clock.now]
    owned_by(path, machine="elsewhere", pid=2**22 + 1, beat=-1)
    waiter = claim(path, clock)
    assert waiter.acquire(never)
    assert 60 < clock.now - last[-1] < 64
    waiter.release()
    assert list(tmp_path.iterdir()) == []


def test_a_lease_does_not_depend_on_the_wall_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a clock that jumps nor a file dated in the future affects a lease."""
    path = tmp_path / "x.claim"
    owned_by(path, machine="elsewhere")
    os.utime(path, (0, 0))
    monkeypatch.setattr(time, "time", lambda: 4e9)
    clock = Clock()
    assert not claim(path, clock).acquire(lambda: clock.now > 1050)
    os.utime(path, (4e9, 4e9))
    assert claim(path, clock).acquire(never)


@pytest.mark.parametrize("reaped", [True, False])
def test_the_lease_of_a_killed_process_is_taken_over_at_once(tmp_path: Path, reaped: bool) -> None:
    """A real process on this machine gets SIGKILL. Its lease is taken over even if it remains as a
    zombie."""
    path = tmp_path / "x.claim"
    owner = child(lambda: None if Lease(path).acquire(never) else os._exit(2))
    until(path.exists)
    until(lambda: "token" in path.read_text())
    os.kill(owner, signal.SIGKILL)
    if reaped:
        os.waitpid(owner, 0)
    else:
        os.waitid(os.P_PID, owner, os.WEXITED | os.WNOWAIT)
    clock = Clock()
    waiter = claim(path, clock)
    assert waiter.acquire(never)
    assert clock.now == 1000.0
    waiter.release()
    if not reaped:
        os.waitpid(owner, 0)


def test_a_process_id_that_was_reused_is_recognized_by_its_start_time(tmp_path: Path) -> None:
    """A process with the same id but another start time does not own the lease."""
    path = tmp_path / "x.claim"
    owned_by(path, start="1")
    clock = Clock()
    assert claim(path, clock).acquire(never)
    assert clock.now == 1000.0


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"\xff\xfe\x00", b"[]", b"null", b"3", b'{"pid": "x"}', b"x" * 5000,
     b'{"machine": "M", "pid": 1e99}', b'{"machine": "M", "pid": 99999999999999999999}',
     b'{"machine": "M", "pid": null}'],
)  # fmt: skip
def test_a_damaged_lease_file_is_taken_over_after_the_timeout(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "x.claim"
    path.write_bytes(text.replace(b'"M"', json.dumps(machine()).encode()))
    clock = Clock()
    assert claim(path, clock).acquire(never)
    assert clock.now < 1064


def test_releasing_a_lost_lease_keeps_the_lease_of_the_new_owner(tmp_path: Path) -> None:
    path = tmp_path / "x.claim"
    mine = claim(path, Clock())
    assert mine.acquire(never)
    owned_by(path)
    mine.release()
    assert "theirs" in path.read_text()


def test_the_heartbeat_stops_after_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the lease is held, the heartbeat changes its file. After the release, the file does not
    come back."""
    monkeypatch.setattr(lease, "BEAT", 0.01)
    path = tmp_path / "x.claim"
    for _ in range(5):
        mine = Lease(path)
        assert mine.acquire(never)
        until(lambda: json.loads(path.read_text())["beat"] >= 2)
        mine.release()
        time.sleep(0.03)
        assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_no_empty_lease_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty file would make other processes wait for an owner that does not exist."""
    mine = claim(tmp_path / "x.claim", Clock())

    def no_room(beat: int) -> str:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(mine, "_says", no_room)
    with pytest.raises(OSError, match="full"):
        mine.acquire(never)
    assert list(tmp_path.iterdir()) == []


def test_only_one_thread_at_a_time_holds_a_lease(tmp_path: Path) -> None:
    path, inside, most = tmp_path / "x.claim", [0], [0]

    def work() -> None:
        for _ in range(5):
            mine = Lease(path, sleep=lambda _: time.sleep(0.001))
            assert mine.acquire(never)
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.001)
            inside[0] -= 1
            mine.release()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
