"""Claims: lock files that state which process computes an output.

The owner rewrites its claim every few seconds. A waiting process takes over the claim if the owner
ran on the same machine and has ended, or if the file has not changed for `patience` seconds on the
waiting process's monotonic clock. A lost claim costs duplicate work, never a wrong result, because
an output counts as complete only once its manifest is published. A directory or a broken link at
the path of a claim is set aside.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from backdoor_lab.core.errors import DataError
from backdoor_lab.core.small_files import DamagedFileError, decode, read_small, set_aside

BEAT, PATIENCE, POLL = 5.0, 60.0, 0.1
MAX_BYTES = 65_536


class Lease:
    """A claim (lock file) with which one process reserves one output; see `acquire` and `release`.

    `token` identifies this owner. `evicted` lists the owners whose claims were taken over and whose
    unfinished files can be removed.
    """

    def __init__(
        self,
        path: Path,
        *,
        patience: float = PATIENCE,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.path, self.patience, self.clock, self.sleep = path, patience, clock, sleep
        self.token = uuid.uuid4().hex
        self.evicted: list[str] = []
        self._released = threading.Event()
        self._writing = threading.Lock()

    def acquire(self, nothing_to_do: Callable[[], bool]) -> bool:
        """Wait until this process owns the claim and return True; return False as soon as
        `nothing_to_do()` is true."""
        seen, since, pause = "", self.clock(), POLL
        while not self._create():
            if nothing_to_do():
                return False
            text = self._look()
            if text is None:
                continue
            if text != seen:
                seen, since = text, self.clock()
            waited = self.clock() - since
            # If the file is empty, its owner may be about to write it.
            if not _names_owner(text) and waited >= (0 if text else BEAT):
                set_aside(self.path, "not a valid claim")
                continue
            if _owner_is_gone(text) or waited > self.patience:
                self._evict(text)
                continue
            self.sleep(pause)
            pause = min(pause * 1.5, 1.0)
        threading.Thread(target=self._beat, daemon=True).start()
        return True

    def release(self) -> None:
        """Remove the claim if this process still owns it."""
        self._released.set()
        # Without the lock, a heartbeat that has just passed its check could write the claim again.
        with self._writing:
            if self._is_ours():
                self.path.unlink(missing_ok=True)

    def _look(self) -> str | None:
        """Returns the text of the claim file; None if there is no file, or if it was damaged and
        has been set aside."""
        try:
            return _text(self.path)
        except DamagedFileError as error:
            set_aside(self.path, str(error).removeprefix(f"{self.path} is "))
            return None

    def _create(self) -> bool:
        try:
            handle = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            return False
        try:
            with os.fdopen(handle, "w") as stream:
                stream.write(self._says(0))
        except OSError:
            # An empty claim names no owner: other processes would wait BEAT seconds before setting
            # it aside.
            self.path.unlink(missing_ok=True)
            raise
        return True

    def _is_ours(self) -> bool:
        try:
            return _token(_text(self.path)) == self.token
        except DataError:
            return False

    def _says(self, beat: int) -> str:
        owner = {"machine": machine(), "pid": os.getpid(), "start": _start_of(os.getpid())}
        return json.dumps(owner | {"token": self.token, "beat": beat})

    def _evict(self, text: str) -> None:
        # Check again: another waiting process may already have evicted the dead owner.
        if self._look() != text:
            return
        grave = self.path.with_name(f".dead-{uuid.uuid4().hex}")
        try:
            os.rename(self.path, grave)
        except FileNotFoundError:
            return
        grave.unlink(missing_ok=True)
        self.evicted.append(str(_token(text)))

    def _beat(self) -> None:
        beat = 0
        while not self._released.wait(BEAT):
            beat += 1
            with self._writing:
                if self._released.is_set() or not self._is_ours():
                    return
                self._say(beat)

    def _say(self, beat: int) -> None:
        part = self.path.with_name(f".beat-{self.token}")
        try:
            part.write_text(self._says(beat))
            os.replace(part, self.path)
        except OSError:
            # A full disk stops the heartbeat; at worst another process repeats the computation.
            part.unlink(missing_ok=True)


def machine() -> str:
    """Returns this machine's boot id and PID namespace, which together make a process id unique. If
    the system does not report these, returns the host name."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _start_of(pid: int) -> str:
    # Process ids are reused; the pair of process id and start time is not.
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _alive(pid: int, start: str) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    state = _state_of(pid)
    return state != "Z" and (not start or _start_of(pid) in ("", start))


def _state_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


def _text(path: Path) -> str | None:
    try:
        return read_small(path, max_bytes=MAX_BYTES).decode(errors="replace")
    except FileNotFoundError:
        return None


def _fields(text: str | None) -> dict[str, object]:
    try:
        found = decode((text or "{}").encode())
    except DamagedFileError:
        return {}
    return found if isinstance(found, dict) else {}


def _token(text: str | None) -> object:
    return _fields(text).get("token")


def _names_owner(text: str) -> bool:
    return isinstance(_token(text), str)


def _owner_is_gone(text: str | None) -> bool:
    owner = _fields(text)
    pid = owner.get("pid")
    if owner.get("machine") != machine() or type(pid) is not int or pid <= 0:
        return False
    return not _alive(pid, str(owner.get("start", "")))
