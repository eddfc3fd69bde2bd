"""Named points at which the tests kill the process or fill the disk; inert otherwise."""

from __future__ import annotations

import errno
import os
import signal
import time

_seen: dict[str, int] = {}


def point(name: str) -> None:
    """Does what BACKDOOR_LAB_FAULT asks for at this point, e.g. ``train.published:kill:1``.

    The form is ``name:action:n``: at the n-th passage of `name`, `kill` sends this process
    SIGKILL, `full` raises ENOSPC, `term` sends SIGTERM, `oom` raises MemoryError, `wait` goes
    on only an hour later.
    """
    plan = os.environ.get("BACKDOOR_LAB_FAULT")
    if not plan:
        return
    wanted, action, count = plan.split(":")
    if name != wanted:
        return
    _seen[name] = _seen.get(name, 0) + 1
    if _seen[name] == int(count):
        _do(action)


def _do(action: str) -> None:
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "term":
        os.kill(os.getpid(), signal.SIGTERM)
    elif action == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    elif action == "oom":
        raise MemoryError("planned by BACKDOOR_LAB_FAULT")
    elif action == "wait":
        time.sleep(3600)
