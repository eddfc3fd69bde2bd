"""Processes that run cells, watched by the process that started them.

Only the parent of a process learns how the process ended, so each cell of a sweep runs in a child
of a process of this package. On this machine (`basic`, `joblib`), the driver starts workers that
import torch once and run many cells. A joblib pool is not used: if one of its workers dies, the
pool kills the other workers without reporting which cell was lost. With other launchers (submitit,
Slurm, Ray), the process that the launcher starts forks a child for its cell. The fork comes before
the import of torch, because the threads that torch starts do not survive a fork.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing import connection, resource_tracker
from typing import Any

from backdoor_lab.core import shutdown
from backdoor_lab.core.errors import StoppedError
from backdoor_lab.core.output import survive_lost_output

GRACE = 5.0
"""Seconds that a child has to exit after it was asked to stop."""
HELD = {"SIGINT", "SIGTERM", "SIGCONT", "SIGUSR1", "SIGUSR2"}


_watched = threading.Event()


class WorkerDiedError(Exception):
    """Raised if a process ended without a result. `code` is its exit code, or ``-n`` if signal
    ``n`` ended it."""

    def __init__(self, code: int, pid: int) -> None:
        super().__init__(code, pid)
        self.code, self.pid = code, pid


class Worker:
    """A child process that calls `run` with one job after another."""

    def __init__(self, run: Callable[[Any], Any], method: str = "spawn") -> None:
        context: Any = multiprocessing.get_context(method)
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, run))
        if method == "spawn":
            resource_tracker.ensure_running()  # It unblocks signals when it starts.
        # Block signals until the child has installed its own handlers; they stay pending.
        with _held():
            self._process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        """The process id of the worker."""
        return int(self._process.pid)

    def send(self, job: Any) -> None:
        """Send a job to the worker. Call ``result`` before sending the next one."""
        # If the process has died, ``result`` reports it.
        with contextlib.suppress(OSError):
            self._pipe.send([job])

    def result(self) -> Any:
        """Wait until `run` returns, and return its value. Raises WorkerDiedError if the process
        ends without returning one."""
        while not ready([self], 1.0):
            pass
        try:
            if self._pipe.poll():
                return self._pipe.recv()
        except (EOFError, OSError):
            pass
        self._process.join()
        raise WorkerDiedError(self._process.exitcode, self.pid)

    def stop(self) -> None:
        """Ask the process to stop, and kill it if it is still running after `GRACE` seconds."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGINT)
        self.retire()

    def retire(self) -> None:
        """Let the process exit. Call this when it has no job left."""
        with contextlib.suppress(OSError):
            self._pipe.send([])
        self._process.join(GRACE)
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def _ended(self) -> bool:
        return self._process.exitcode is not None


def ready(workers: list[Worker], timeout: float) -> list[Worker]:
    """The workers that have a result or have died. Waits at most `timeout` seconds for the first
    one."""
    pipes = {worker._pipe: worker for worker in workers}
    found = [pipes[each] for each in connection.wait(list(pipes), timeout)]  # type: ignore[index]
    # If the worker died, a process that it started may keep its pipe open: check for the exit too.
    return found or [worker for worker in workers if worker._ended()]


def is_worker() -> bool:
    """Whether this process was started by a `Worker`, and so is watched by its parent."""
    return _watched.is_set()


def _serve(pipe: Any, run: Callable[[Any], Any]) -> None:
    _watched.set()
    survive_lost_output()
    shutdown.install_in_child()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _signals())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, BrokenPipeError):
        while jobs := pipe.recv():
            try:
                result = run(*jobs)
            except StoppedError as stopped:
                # Without a traceback: the driver is asked to stop as well, and says so.
                raise SystemExit(stopped.exit_code) from None
            pipe.send(result)


def _end_with_parent() -> None:
    # Exit if the parent dies: no other process could report how the cell ended.
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _signals() -> set[signal.Signals]:
    return {signal.Signals[name] for name in HELD}


@contextlib.contextmanager
def _held() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
