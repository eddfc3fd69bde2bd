"""Row 3 of the fault table: a full disk gives one clear error, and no published result is lost."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from backdoor_lab.core.errors import StoreFullError
from tests.helpers.cells import lasting, run_here

STAGES = ("poison", "train", "measure", "extract", "filter", "retrain")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The record of a run with enough space."""
    root = tmp_path_factory.mktemp("unbroken")
    return lasting(run_here(root / "store", root / "cell"))


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("when", ["before", "made"])
def test_a_cell_that_failed_on_a_full_disk_resumes_when_there_is_space(
    stage: str, when: str, unbroken: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On ENOSPC, the error of the cell names what was written and where. Once there is space again,
    the same run completes."""
    monkeypatch.setattr("backdoor_lab.core.failpoints._seen", {})
    run_here_ready(tmp_path)
    monkeypatch.setenv("BACKDOOR_LAB_FAULT", f"{stage}.{when}:full:1")
    record = run_here(tmp_path / "store", tmp_path / "cell")
    assert record["status"].startswith("failed:")
    assert "not enough disk space" in record["error"]
    assert "bytes free" in record["error"]
    assert not list((tmp_path / "store").glob("*/.part-*"))
    monkeypatch.delenv("BACKDOOR_LAB_FAULT")
    assert lasting(run_here(tmp_path / "store", tmp_path / "cell")) == unbroken


def test_a_full_disk_while_caching_the_data_stops_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A data set that does not fit on the disk stops the command before any cell runs."""
    monkeypatch.setattr("backdoor_lab.core.failpoints._seen", {})
    monkeypatch.setenv("BACKDOOR_LAB_FAULT", "data.made:full:1")
    with pytest.raises(StoreFullError, match=r"not enough disk space.*store\.root"):
        run_here(tmp_path / "store", tmp_path / "cell")


@pytest.mark.parametrize(
    ("limit", "expected"), [(2_000, 2), (20_000, 2), (60_000, 0), (200_000, 0)]
)
def test_a_file_size_limit_is_handled_like_a_full_disk(
    limit: int, expected: int, unbroken: dict, tmp_path: Path
) -> None:
    """The kernel refuses writes beyond the limit. The cell fails, and its record says so. If the
    record does not fit either, StoreFullError is raised."""
    run_here_ready(tmp_path)
    pid = os.fork()
    if pid == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        code = 9
        try:
            record = run_here(tmp_path / "store", tmp_path / "cell")
            reported = record["status"] != "done" and "not enough disk space" in record["error"]
            code = 0 if reported else 1
        except StoreFullError:
            code = 2
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    assert os.WIFEXITED(status)
    assert os.WEXITSTATUS(status) == expected
    assert lasting(run_here(tmp_path / "store", tmp_path / "cell")) == unbroken


def run_here_ready(root: Path) -> None:
    """Caches the data set in advance, so that the fault occurs in the cell."""
    from tests.helpers.cells import cell_of

    cell_of(root / "store")
