"""CPU cores and memory that this process may use.

A container, a batch system or `taskset` may allow less than the machine has. Where no limits are
reported (macOS and Windows lack /proc and control groups), the machine's totals apply.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

WAITING = {
    # torch (libgomp): the number of busy-waiting iterations. By default, threads wait busily for
    # milliseconds in which another library or process could use the core. Without busy waiting
    # (OMP_WAIT_POLICY=PASSIVE), every small operation waits for its threads to wake up.
    "GOMP_SPINCOUNT": "10000",
    # NumPy (OpenBLAS): log2 of the clock cycles of busy waiting; the default is 26.
    "OPENBLAS_THREAD_TIMEOUT": "16",
}

ROOT = Path("/")
UNLIMITED = 2**60
"""A limit of at least this many bytes means "no limit": control groups version 1 then report a
number near 2**63."""


def cores(root: Path = ROOT) -> int:
    """Returns the number of physical cores that this process may use, at least 1; two hyperthreads
    count as one.

    The limits are the process's CPU affinity, the CPU quota of its control groups, and
    LOKY_MAX_CPU_COUNT.
    """
    from joblib.externals.loky import cpu_count  # type: ignore[import-untyped]

    with warnings.catch_warnings():
        # If the physical cores cannot be counted, joblib warns and counts the logical ones.
        warnings.simplefilter("ignore")
        usable, whole = cpu_count(), cpu_count(only_physical_cores=True)
    limits = [usable, _distinct_cores(root) or whole, *_quotas(root)]
    return max(1, min(limits))


def free_memory(root: Path = ROOT) -> int | None:
    """Returns how many bytes of memory this process and its children can still allocate; the
    machine's total if only that is known, None if nothing is known."""
    found = [*_memory_left(root)]
    if not found:
        with suppress(AttributeError, OSError, ValueError):
            found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(found, default=None)


def busy_seconds(root: Path = ROOT) -> float | None:
    """Returns how many seconds the CPUs available to this process have been busy since boot, summed
    over these CPUs; None if the system does not report it."""
    try:
        lines = [line.split() for line in _text(root / "proc/stat").splitlines()]
        tick = os.sysconf("SC_CLK_TCK")
        allowed = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    except (AttributeError, OSError, ValueError):
        return None
    found = [line for line in lines if line and line[0] in allowed]
    if not found:
        return None
    # user, nice, system, idle, iowait, irq, softirq, steal
    used = [sum(map(int, (*each[1:4], *each[6:9]))) for each in found]
    return sum(used) / tick


def _distinct_cores(root: Path) -> int:
    """Returns the number of physical cores to which the CPUs in this process's affinity mask
    belong; 0 if unknown."""
    if not hasattr(os, "sched_getaffinity"):
        return 0
    found = set()
    for cpu in os.sched_getaffinity(0):
        siblings = _text(root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        if not siblings:
            return 0
        found.add(siblings)
    return len(found)


def _quotas(root: Path) -> Iterator[int]:
    """Yields the CPU quota of each control group, in CPUs, rounded up."""
    for folder in _groups(root, "cpu"):
        said = _text(folder / "cpu.max")
        if not said:
            said = f"{_text(folder / 'cpu.cfs_quota_us')} {_text(folder / 'cpu.cfs_period_us')}"
        # "No limit" is "max" in version 2 and -1 in version 1.
        with suppress(ValueError, ZeroDivisionError):
            quota, period = map(int, said.split())
            if quota > 0:
                yield math.ceil(quota / period)


def _memory_left(root: Path) -> Iterator[int]:
    available = _field(_text(root / "proc/meminfo"), "MemAvailable:")
    if available is not None:
        yield available * 1024
    for folder in _groups(root, "memory"):
        for limit, usage, cache in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            with suppress(ValueError):
                allowed, used = int(_text(folder / limit)), int(_text(folder / usage))
                # The kernel frees its page cache when memory is needed.
                used -= _field(_text(folder / "memory.stat"), cache) or 0
                if allowed < UNLIMITED:
                    yield max(0, allowed - used)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Yields the control groups that may limit this process, innermost first."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if names and controller not in names.split(","):
            continue
        mounts = ["sys/fs/cgroup", "sys/fs/cgroup/unified"]
        if names:
            mounts = [f"sys/fs/cgroup/{controller}", f"sys/fs/cgroup/{names}"]
        for mount in mounts:
            top = root / mount
            inner = top / path.lstrip("/")
            # In a container, this may be a path of the host that does not exist here, but `top`
            # does.
            yield from (each for each in (inner, *inner.parents) if each.is_relative_to(top))


def _field(text: str, name: str) -> int | None:
    for line in text.splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == name and words[1].isdigit():
            return int(words[1])
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def wait_briefly() -> None:
    """Shorten the busy waiting of idle threads: set each environment variable in `WAITING` that is
    not set yet. Call before importing torch and NumPy."""
    for name, value in WAITING.items():
        os.environ.setdefault(name, value)
