"""Processes that run cells, watched by the process that started them.

Only the parent of a process learns how it ended, so every cell of a sweep runs in a child of one
of this package's processes. On this machine (`basic`, `joblib`) the driver starts such workers,
which import torch once and run one cell after the other. A joblib pool would not do: when one of
its processes dies, it kills the others and does not report which cell died. Elsewhere (submitit,
Slurm, Ray) the launcher's process forks one child per cell before any heavy import: nothing is
imported twice, and there are no threads yet that a fork would lose.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing import connection
from typing import Any

from backdoor_lab.core import shutdown
from backdoor_lab.core.output import survive_lost_output

GRACE = 5.0
"""Seconds that a child has to exit after it is asked to stop."""
HELD = {"SIGINT", "SIGTERM", "SIGCONT", "SIGUSR1", "SIGUSR2"}


_watched = threading.Event()


class WorkerDiedError(Exception):
    """A process ended without a result. `code`: its exit code, ``-n`` for signal ``n``."""

    def __init__(self, code: int, pid: int) -> None:
        super().__init__(code, pid)
        self.code, self.pid = code, pid


class Worker:
    """A child process that applies `run` to one job after the other."""

    def __init__(self, run: Callable[[Any], Any], method: str = "spawn") -> None:
        context: Any = multiprocessing.get_context(method)
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, run))
        # Signals stay pending until the child has its own handlers.
        with _held():
            self._process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        """The process id."""
        return int(self._process.pid)

    def send(self, job: Any) -> None:
        """Send the process a job; call ``result`` before the next."""
        # ``result`` reports a process that has already died.
        with contextlib.suppress(OSError):
            self._pipe.send([job])

    def result(self) -> Any:
        """Wait for the return value of `run`. Raises WorkerDiedError if the process ended
        instead."""
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
        """Ask the process to stop, wait, and kill it if it does not."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGINT)
        self.retire()

    def retire(self) -> None:
        """Let the process end after its last job."""
        with contextlib.suppress(OSError):
            self._pipe.send([])
        self._process.join(GRACE)
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def _ended(self) -> bool:
        return self._process.exitcode is not None


def ready(workers: list[Worker], timeout: float) -> list[Worker]:
    """The workers that have a result or have ended, after at most `timeout` seconds."""
    pipes = {worker._pipe: worker for worker in workers}
    found = [pipes[each] for each in connection.wait(list(pipes), timeout)]  # type: ignore[index]
    # A pipe inherited by a grandchild stays open after the worker has died.
    return found or [worker for worker in workers if worker._ended()]


def is_worker() -> bool:
    """Whether this process was started by a Worker, which watches it."""
    return _watched.is_set()


def _serve(pipe: Any, run: Callable[[Any], Any]) -> None:
    _watched.set()
    survive_lost_output()
    shutdown.install_in_child()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _signals())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, BrokenPipeError):
        while jobs := pipe.recv():
            pipe.send(run(*jobs))


def _end_with_parent() -> None:
    # Without its parent, no process would report how the cell ended.
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
