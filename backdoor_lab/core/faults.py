"""Named points at which the tests kill the process or fill the disk; inert otherwise."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import time

cell = ""
"""The cell that this process runs."""
_seen: dict[str, int] = {}


def point(name: str) -> None:
    """Does what BACKDOOR_LAB_FAULT asks for at this point, e.g. ``train.published:kill:1``.

    The form is ``name:action:n`` or ``name:action:n:part``, several of them separated by
    semicolons: at this process' n-th passage of `name` (in cells with `part` in their id),
    `kill` sends this process SIGKILL, `segv` reads address 0, `abort` aborts, `exit` ends it with
    exit code 7, `full` raises ENOSPC, `term` sends SIGTERM, `oom` raises MemoryError, `wait`
    continues only an hour later.
    """
    for plan in filter(None, os.environ.get("BACKDOOR_LAB_FAULT", "").split(";")):
        wanted, action, count, *part = plan.split(":")
        if name != wanted or not all(each in cell for each in part):
            continue
        _seen[plan] = _seen.get(plan, 0) + 1
        if _seen[plan] == int(count):
            _do(action)


def _do(action: str) -> None:
    if action in ("kill", "term"):
        os.kill(os.getpid(), signal.SIGKILL if action == "kill" else signal.SIGTERM)
    elif action == "segv":
        ctypes.string_at(0)
    elif action == "abort":
        os.abort()
    elif action == "exit":
        os._exit(7)
    elif action == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    elif action == "oom":
        raise MemoryError("planned by BACKDOOR_LAB_FAULT")
    elif action == "wait":
        time.sleep(3600)
