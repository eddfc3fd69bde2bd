"""Named points in the code at which tests can kill the process or simulate a full disk. Without a
request from a test, they do nothing."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import time

cell = ""
"""The id of the cell that this process runs."""
_seen: dict[str, int] = {}


def point(name: str) -> None:
    """Perform the action that BACKDOOR_LAB_FAULT requests here, e.g. ``train.published:kill:1``.

    Each request has the form ``name:action:n`` or ``name:action:n:part``; semicolons separate
    requests. The action happens at this process's n-th call with `name`. With `part`, only calls in
    cells whose id contains `part` are counted. The actions: `kill` sends SIGKILL, `segv` reads
    address 0, `abort` aborts, `exit` exits with code 7, `full` raises OSError (ENOSPC), `term`
    sends SIGTERM, `oom` raises MemoryError, and `wait` sleeps for an hour.
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
        raise MemoryError("simulated by BACKDOOR_LAB_FAULT")
    elif action == "wait":
        time.sleep(3600)
