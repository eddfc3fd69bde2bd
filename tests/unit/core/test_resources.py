"""Cores and memory available to a process: the minimum of affinity, quotas and limits."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from joblib.externals import loky

from backdoor_lab.core import resources
from backdoor_lab.core.resources import cores, free_memory


def machine(root: Path, files: dict[str, str]) -> Path:
    """A fake /proc and /sys with the files that are read."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system of eight logical CPUs, all available."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(loky, "cpu_count", lambda only_physical_cores=False: 8)


def hyperthreads() -> dict[str, str]:
    """CPUs 0 and 4, 1 and 5, … are two threads of one core."""
    siblings = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    return {siblings.format(cpu): f"{cpu % 4},{cpu % 4 + 4}\n" for cpu in range(8)}


@pytest.mark.usefixtures("eight")
def test_hyperthreads_of_the_same_core_are_counted_once(tmp_path: Path) -> None:
    assert cores(machine(tmp_path, hyperthreads())) == 4


@pytest.mark.usefixtures("eight")
@pytest.mark.parametrize(("allowed", "physical"), [({0, 4}, 1), ({0, 1, 5}, 2), ({2}, 1)])
def test_cpu_affinity_limits_the_number_of_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: set[int], physical: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: allowed)
    assert cores(machine(tmp_path, hyperthreads())) == physical


@pytest.mark.usefixtures("eight")
@pytest.mark.parametrize(("files", "wanted"), [
    ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "300000 100000"}, 3),
    ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "150000 100000"}, 2),
    ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000"}, 8),
    # A parent group also limits its children.
    ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/cpu.max": "200000 100000",
      "sys/fs/cgroup/a/b/cpu.max": "max 100000"}, 2),
    # Control groups version 1. In the first case, the group's path is not that in the container.
    ({"proc/self/cgroup": "3:cpu,cpuacct:/docker/x\n2:memory:/docker/x",
      "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "500000",
      "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, 5),
    ({"proc/self/cgroup": "3:cpu:/a", "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": "-1",
      "sys/fs/cgroup/cpu/a/cpu.cfs_period_us": "100000"}, 8),
    ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "nonsense"}, 8),
    ({}, 8),
])  # fmt: skip
def test_a_cpu_quota_limits_the_number_of_cores(
    tmp_path: Path, files: dict[str, str], wanted: int
) -> None:
    assert cores(machine(tmp_path, files)) == wanted


def test_the_core_count_falls_back_to_joblib_without_procfs_and_cpu_affinity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This is the case on macOS and Windows."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(
        loky, "cpu_count", lambda only_physical_cores=False: 5 if only_physical_cores else 10
    )
    assert cores(tmp_path) == 5


@pytest.mark.parametrize(("files", "wanted"), [
    ({"proc/meminfo": "MemTotal: 9 kB\nMemAvailable:    3000 kB\n"}, 3_072_000),
    ({"proc/meminfo": "MemAvailable: 3000 kB", "proc/self/cgroup": "0::/a",
      "sys/fs/cgroup/a/memory.max": "1000000", "sys/fs/cgroup/a/memory.current": "700000",
      "sys/fs/cgroup/a/memory.stat": "anon 1\ninactive_file 200000\n"}, 500_000),
    ({"proc/meminfo": "MemAvailable: 3000 kB", "proc/self/cgroup": "0::/a",
      "sys/fs/cgroup/a/memory.max": "max", "sys/fs/cgroup/a/memory.current": "7"}, 3_072_000),
    ({"proc/meminfo": "MemAvailable: 3000 kB", "proc/self/cgroup": "4:memory:/x",
      "sys/fs/cgroup/memory/memory.limit_in_bytes": "2000000",
      "sys/fs/cgroup/memory/memory.usage_in_bytes": "1500000",
      "sys/fs/cgroup/memory/memory.stat": "total_inactive_file 100000"}, 600_000),
    ({"proc/meminfo": "MemAvailable: 3000 kB", "proc/self/cgroup": "4:memory:/x",
      "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
      "sys/fs/cgroup/memory/memory.usage_in_bytes": "1500000"}, 3_072_000),
])  # fmt: skip
def test_free_memory_is_the_minimum_of_all_limits(
    tmp_path: Path, files: dict[str, str], wanted: int
) -> None:
    assert free_memory(machine(tmp_path, files)) == wanted


def test_without_the_proc_file_system_the_memory_size_comes_from_sysconf_or_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes from sysconf on macOS and is unknown on Windows."""
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}.__getitem__)
    assert free_memory(tmp_path) == 4_096_000
    monkeypatch.delattr(os, "sysconf")
    assert free_memory(tmp_path) is None


def test_cores_and_memory_of_this_machine_are_plausible() -> None:
    assert 1 <= cores() <= (os.cpu_count() or 1)
    assert (free_memory() or 0) > 0
    assert Path("/") == resources.ROOT
