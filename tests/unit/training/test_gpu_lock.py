"""Each cell has exclusive use of a GPU. The locks are tested without GPUs."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from backdoor_lab.training.gpu_lock import own_device

DEVICES = ("GPU-a", "GPU-b")


def worker(folder: Path, held: Path, share: int, seconds: float) -> int:
    """A process that acquires a device, holds it for a while, and records which one and when."""
    pid = os.fork()
    if pid == 0:
        with own_device(DEVICES, share=share, folder=folder) as number:
            began = time.monotonic()
            time.sleep(seconds)
            (held / f"{os.getpid()}").write_text(f"{number} {began} {time.monotonic()}")
        os._exit(0)
    return pid


def most_at_once(held: Path, number: int) -> int:
    """The largest number of concurrent holders of one device."""
    spans = [path.read_text().split() for path in held.iterdir()]
    times = [(float(a), float(b)) for n, a, b in spans if int(n) == number]
    return max(sum(a <= moment < b for a, b in times) for moment, _ in times)


def run(tmp_path: Path, share: int) -> list[int]:
    """Runs six workers on two devices. Returns the largest number of concurrent holders of each."""
    held = tmp_path / "held"
    held.mkdir()
    workers = [worker(tmp_path / "locks", held, share, 0.3) for _ in range(6)]
    assert [os.waitpid(pid, 0)[1] for pid in workers] == [0] * 6
    assert len(list(held.iterdir())) == 6
    return [most_at_once(held, number) for number in range(2)]


def test_no_two_cells_use_the_same_gpu_at_once(tmp_path: Path) -> None:
    """Both GPUs are used, each by one cell at a time."""
    assert run(tmp_path, 1) == [1, 1]


def test_the_option_cells_per_gpu_limits_how_many_cells_share_a_device(tmp_path: Path) -> None:
    """With two cells per device there are never more than two on one."""
    assert max(run(tmp_path, 2)) == 2


def test_a_killed_process_releases_the_gpu_that_it_had_locked(tmp_path: Path) -> None:
    """After SIGKILL the operating system releases the lock."""
    (tmp_path / "held").mkdir()
    pid = worker(tmp_path / "locks", tmp_path / "held", 1, 60)
    time.sleep(0.3)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with own_device(DEVICES, folder=tmp_path / "locks") as number:
        assert number == 0
