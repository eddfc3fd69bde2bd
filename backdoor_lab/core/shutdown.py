"""Stop requests: a signal handler sets a flag, which long-running code checks between steps."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

from backdoor_lab.core.errors import StoppedError

_asked: list[str] = []


def install() -> None:
    """Make SIGTERM and SIGINT request a stop; a second SIGINT ends the process immediately.

    Does nothing in a cluster task: there submitit handles the signals, and a task that exits early
    with success would count as finished.
    """
    if "SUBMITIT_EXECUTOR" in os.environ:
        return
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _handler)
        signal.signal(signal.SIGINT, _handler)


def install_in_child() -> None:
    """Install the handlers in a child process.

    In a cluster task, a child ignores the signals of the cluster: its parent reacts to them, and
    sends SIGINT to stop the child.
    """
    if "SUBMITIT_EXECUTOR" not in os.environ:
        install()
        return
    for name in ("SIGTERM", "SIGCONT", "SIGUSR1", "SIGUSR2"):
        signal.signal(signal.Signals[name], signal.SIG_IGN)
    signal.signal(signal.SIGINT, _handler)


def requested() -> bool:
    """Whether a stop has been requested."""
    return bool(_asked)


def check() -> None:
    """Raises StoppedError if a stop has been requested."""
    if _asked:
        raise StoppedError(f"stopped by {_asked[0]}; the same command resumes from here")


def forward_to_children() -> None:
    """Start a thread that forwards a stop request to this process's children, which may not have
    received the signal."""
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
