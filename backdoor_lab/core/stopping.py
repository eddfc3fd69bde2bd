"""Being asked to stop: the signal handler sets a flag, and the work looks at it at its edges."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

from backdoor_lab.core.errors import Stopped

_asked: list[str] = []


def install() -> None:
    """From now on SIGTERM and SIGINT ask for a stop; a second SIGINT ends the process at once.

    Not inside a cluster's task: there submitit minds the signals, and a task that ended early
    and well would pass for a finished one.
    """
    if "SUBMITIT_EXECUTOR" in os.environ:
        return
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _handler)
        signal.signal(signal.SIGINT, _handler)


def install_in_child() -> None:
    """The same in a process that runs cells for a parent, which decides what a signal means.

    Inside a cluster's task only the parent, through SIGINT, may ask for a stop.
    """
    if "SUBMITIT_EXECUTOR" not in os.environ:
        install()
        return
    for name in ("SIGTERM", "SIGCONT", "SIGUSR1", "SIGUSR2"):
        signal.signal(signal.Signals[name], signal.SIG_IGN)
    signal.signal(signal.SIGINT, _handler)


def requested() -> bool:
    """Whether somebody asked for a stop."""
    return bool(_asked)


def check() -> None:
    """Raises Stopped when somebody asked for a stop."""
    if _asked:
        raise Stopped(f"stopped by {_asked[0]}; the same command goes on from here")


def forward_to_children() -> None:
    """Starts a thread that hands a stop on to this process' children, which may not have got
    the signal themselves."""
    threading.Thread(target=_forward, daemon=True).start()


def _handler(number: int, frame: Any) -> None:
    if _asked and number == signal.SIGINT:
        raise KeyboardInterrupt
    _asked.append(signal.Signals(number).name)


def _forward() -> None:
    while not _asked:
        time.sleep(0.2)
    for child in _children():
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGTERM)


def _children() -> list[int]:
    found: list[int] = []
    for path in Path(f"/proc/{os.getpid()}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(pid) for pid in path.read_text().split()]
    return found
