"""Supervised worker processes. A death is noticed at once, together with its cause."""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any

import pytest

from backdoor_lab.core.errors import StoppedError
from backdoor_lab.sweep.launching.loss import LostProcess, interrupted
from backdoor_lab.sweep.launching.remote import supervised
from backdoor_lab.sweep.launching.workers import Worker, WorkerDiedError, is_worker, ready

METHODS = ("spawn", "fork")


def act(job: Any) -> Any:
    """The jobs of the workers in these tests."""
    what, value = job
    # Otherwise pytest would print the stack trace of a forked worker.
    faulthandler.disable()
    if what == "kill":
        os.kill(os.getpid(), value)
    if what == "exit":
        os._exit(value)
    if what == "stop":
        raise StoppedError("stopped by SIGTERM")
    if what == "sleep":
        time.sleep(value)
    return os.getpid(), is_worker(), value


@pytest.fixture(params=METHODS)
def worker(request: pytest.FixtureRequest) -> Iterator[Worker]:
    found = Worker(act, request.param)
    yield found
    found.retire()


def alive(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    return False


def test_a_worker_runs_one_job_after_another(worker: Worker) -> None:
    for value in (1, 2):
        worker.send(("return", value))
        assert worker.result() == (worker.pid, True, value)
    assert worker.pid != os.getpid()
    assert not is_worker()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_the_signal_that_killed_a_worker_is_reported(worker: Worker, number: int) -> None:
    worker.send(("kill", number))
    with pytest.raises(WorkerDiedError) as died:
        worker.result()
    assert (died.value.code, died.value.pid) == (-number, worker.pid)


@pytest.mark.parametrize("code", [0, 1, 7])
def test_the_exit_code_of_a_worker_is_reported(worker: Worker, code: int) -> None:
    worker.send(("exit", code))
    with pytest.raises(WorkerDiedError) as died:
        worker.result()
    assert died.value.code == code


def test_a_stopped_worker_exits_without_a_traceback(
    worker: Worker, capfd: pytest.CaptureFixture[str]
) -> None:
    worker.send(("stop", None))
    with pytest.raises(WorkerDiedError) as died:
        worker.result()
    assert died.value.code == StoppedError.exit_code
    assert capfd.readouterr().err == ""


def test_a_dying_worker_does_not_affect_the_others() -> None:
    workers = [Worker(act) for _ in range(3)]
    try:
        workers[0].send(("kill", signal.SIGKILL))
        workers[1].send(("sleep", 1.0))
        assert workers[0] in ready(workers, 30)
        assert workers[1].result() == (workers[1].pid, True, 1.0)
        workers[2].send(("return", 5))
        assert workers[2].result()[2] == 5
    finally:
        for each in workers:
            each.retire()


def test_a_job_sent_to_a_dead_worker_raises_worker_died_error(worker: Worker) -> None:
    os.kill(worker.pid, signal.SIGKILL)
    while alive(worker.pid):
        time.sleep(0.01)
    worker.send(("return", 1))
    with pytest.raises(WorkerDiedError) as died:
        worker.result()
    assert died.value.code == -signal.SIGKILL


def test_a_supervised_cell_reports_its_result_or_its_death() -> None:
    assert supervised(lambda: act(("return", 3)))[1:] == (True, 3)
    found = supervised(lambda: act(("kill", signal.SIGKILL)))
    assert isinstance(found, LostProcess)
    assert found.code == -signal.SIGKILL


@pytest.mark.parametrize(
    ("raised", "seen"),
    [
        (SystemExit(3), SystemExit),
        (CalledProcessError(-15, "scontrol"), SystemExit),
        (ValueError("timed out too often"), ValueError),
    ],
)
def test_a_task_stopped_by_the_cluster_stops_its_cell(
    raised: BaseException, seen: type[BaseException], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A signal handler that raises while the task waits simulates the cluster."""

    def handler(*_: Any) -> None:
        raise raised

    def run() -> Any:
        (tmp_path / "pid").write_text(str(os.getpid()))
        return act(("sleep", 600))

    monkeypatch.setattr("backdoor_lab.sweep.launching.remote.ENDED_WITHIN", 0.01)
    monkeypatch.setattr("backdoor_lab.sweep.launching.workers.GRACE", 0.2)
    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 2.0)
    try:
        with pytest.raises(seen):
            supervised(run)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert not alive(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize("method", METHODS)
def test_a_worker_ends_when_its_parent_is_killed(method: str) -> None:
    """The parent gets SIGKILL, which it cannot handle."""
    read, write = os.pipe()
    parent = os.fork()
    if parent == 0:
        worker = Worker(act, method)
        worker.send(("sleep", 600))
        os.write(write, str(worker.pid).encode())
        time.sleep(600)
    child = int(os.read(read, 20))
    assert alive(child)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    limit = time.monotonic() + 60
    while alive(child) and time.monotonic() < limit:
        time.sleep(0.05)
    assert not alive(child)


BEAT = {"pid": 5, "stage": "train", "epoch": 2, "epochs": 8}


@pytest.mark.parametrize(
    ("loss", "beat", "reason"),
    [
        (LostProcess(-9, 5), BEAT, "killed by signal 9 during train, epoch 3 of 8"),
        (
            LostProcess(-11, 5),
            BEAT | {"epoch": 8},
            "killed by signal 11 during train, epoch 8 of 8",
        ),
        (LostProcess(-6, 5), {"pid": 5, "stage": "filter"}, "killed by signal 6 during filter"),
        (LostProcess(3, 5), BEAT, "exit code 3 during train, epoch 3 of 8"),
        (LostProcess(-9, 6), BEAT, "killed by signal 9 before its first stage"),
        (LostProcess(-9, 5), {}, "killed by signal 9 before its first stage"),
        (LostProcess(-15), {}, "killed by signal 15"),
        (LostProcess(None, said="gone"), BEAT, "its process was lost during train, epoch 3 of 8"),
    ],
)
def test_the_error_of_a_lost_cell_states_cause_and_stage(
    loss: LostProcess, beat: dict[str, Any], reason: str
) -> None:
    assert loss.reason(beat) == reason


def test_a_cell_with_a_heartbeat_but_without_a_process_counts_as_interrupted(
    tmp_path: Path,
) -> None:
    """A cell whose process is alive or ran on another machine does not."""
    gone = Worker(act, "fork")
    gone.retire()
    beat = BEAT | {"pid": gone.pid, "host": socket.gethostname()}
    path = tmp_path / "running.json"
    assert interrupted(tmp_path) is None
    for says, expected in [
        (beat, "interrupted during train, epoch 3 of 8"),
        (beat | {"pid": os.getpid()}, None),
        (beat | {"host": "elsewhere"}, None),
        (beat | {"pid": 10**30}, "interrupted during train, epoch 3 of 8"),
        (beat | {"pid": -1}, None),
        (["not", "a", "heartbeat"], None),
    ]:
        path.write_text(json.dumps(says))
        assert interrupted(tmp_path) == expected


def test_the_message_about_a_lost_process_has_a_hint_for_each_signal() -> None:
    journal = Path("cell/lab.log")
    assert "n_jobs" in LostProcess(-9, 5).hint(128, journal)
    assert "recipe.batch_size=128" in LostProcess(-9, 5).hint(128, journal)
    for number in (signal.SIGSEGV, signal.SIGABRT):
        assert "Python stack is in cell/lab.log" in LostProcess(-number, 5).hint(128, journal)
    assert "NodeDiedError" in LostProcess(None, said="NodeDiedError").hint(1, journal)


def test_the_first_worker_of_a_process_is_started_with_its_signals_blocked() -> None:
    """Otherwise, Ctrl-C while it imports its modules prints a traceback. Starting the first process
    also starts the resource tracker of multiprocessing, which unblocks signals."""
    code = (
        "from backdoor_lab.sweep.launching.workers import Worker\n"
        "worker = Worker(len)\n"
        "text = open(f'/proc/{worker.pid}/status').read()\n"
        "worker.retire()\n"
        "print(text.partition('SigBlk:')[2].split()[0])\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    blocked = int(found.stdout.split()[-1], 16)
    for each in (signal.SIGINT, signal.SIGTERM):
        assert blocked >> (each - 1) & 1, each
