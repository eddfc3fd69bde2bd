"""If the disk is full while a stage is published, a clear error is raised and no result is partial
or lost."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backdoor_lab.core import failpoints
from backdoor_lab.core import store as store_module
from backdoor_lab.core.errors import StoreFullError
from backdoor_lab.core.store import Store

WHOLE = bytes(10_000)


def make(folder: Path) -> dict[str, Any]:
    """A stage that writes 10,000 bytes."""
    (folder / "weights.bin").write_bytes(WHOLE)
    return {"n": 1}


def fills_up_after(size: int) -> Callable[[Path], dict[str, Any]]:
    def work(folder: Path) -> dict[str, Any]:
        (folder / "weights.bin").write_bytes(WHOLE[:size])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return work


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store that already holds an earlier stage."""
    Store(tmp_path).get("poison", {}, make)
    return Store(tmp_path)


def nothing_lost(store: Store) -> None:
    """Asserts that the earlier stage is intact, and that the failed stage left nothing and can be
    computed now."""
    assert not store.get("poison", {}, make).made
    assert list(store.root.glob("train/*")) == []
    assert list(store.root.glob("train/.*")) == []
    assert store.get("train", {}, make).made


@pytest.mark.parametrize("size", [0, 1, 4096, 9999])
def test_a_disk_that_fills_while_a_stage_writes_loses_no_earlier_result(
    store: Store, size: int
) -> None:
    """The disk is full after `size` bytes of the output."""
    with pytest.raises(StoreFullError, match=r"not enough disk space: .* free .*store\.root.*rep"):
        store.get("train", {}, fills_up_after(size))
    nothing_lost(store)


@pytest.mark.parametrize("name", ["write_through", "sync_folder"])
def test_no_earlier_result_is_lost_if_the_disk_fills_while_an_output_is_published(
    store: Store, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The disk is full when the manifest is written, or when the folder is synced."""

    def no_room(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(store_module, name, no_room)
        with pytest.raises(StoreFullError):
            store.get("train", {}, make)
    nothing_lost(store)


def test_an_injected_write_failure_raises_the_same_error_as_a_full_disk(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failpoints, "_seen", {})
    monkeypatch.setenv("BACKDOOR_LAB_FAULT", "train.made:full:1")
    with pytest.raises(StoreFullError):
        store.get("train", {}, make)
    monkeypatch.delenv("BACKDOOR_LAB_FAULT")
    nothing_lost(store)


@pytest.mark.parametrize("limit", [0, 10, 500, 9_999])
def test_reaching_the_file_size_limit_loses_no_earlier_output(store: Store, limit: int) -> None:
    """A small RLIMIT_FSIZE stops the write of the lease file. A larger one stops the write of the
    output in the middle."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            store.get("train", {}, make)
        except StoreFullError:
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    nothing_lost(store)
