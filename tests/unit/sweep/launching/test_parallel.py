"""How many cells run at a time: as many as the machine allows, unless the user sets a number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from backdoor_lab.core.errors import ConfigError
from backdoor_lab.run import conf_dir
from backdoor_lab.sweep.launching import parallel
from backdoor_lab.sweep.launching.parallel import cell_bytes, parallelism
from tests.helpers.cells import TINY, started

JOBLIB = "hydra/launcher=joblib"


def whole(*overrides: str) -> DictConfig:
    """A configuration with Hydra's own part."""
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        asked = [*TINY, "trainer.threads=null", "model.width=16", *overrides]
        return compose("config", asked, return_hydra_config=True)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    def has(cores: int, memory: int | None) -> None:
        monkeypatch.setattr(parallel, "_machine", lambda: (cores, memory))

    return has


@pytest.mark.parametrize(("cores", "memory", "cells"), [
    (8, 150_000_000_000, 8), (8, 4_500_000_001, 3), (8, 4_499_999_999, 2), (8, 10, 1),
    (1, None, 1), (6, None, 6),
])  # fmt: skip
def test_as_many_cells_run_in_parallel_as_cores_and_memory_allow(
    machine: Any, cores: int, memory: int | None, cells: int
) -> None:
    """Each cell gets one thread, even if a lack of memory leaves cores idle."""
    machine(cores, memory)
    config = whole(JOBLIB)
    found = parallelism(config, 12)
    assert (found.cells, found.threads) == (cells, 1)
    assert config.hydra.launcher.n_jobs == cells
    assert found.overrides(config) == ["trainer.threads=1", f"hydra.launcher.n_jobs={cells}"]


def test_cells_of_wider_networks_are_assumed_to_need_more_memory() -> None:
    assert cell_bytes(whole(JOBLIB)) == 1_500_000_000
    assert cell_bytes(whole(JOBLIB, "model.width=64")) == 3_000_000_000
    # The memory of networks without a width is unknown.
    assert cell_bytes(whole(JOBLIB, "model=torchvision", "model.width=null")) == 3_000_000_000


def test_the_number_of_parallel_cells_is_explained_in_one_line(machine: Any) -> None:
    machine(8, 16_000_000_000)
    said = parallelism(whole(JOBLIB), 12).describe(12)
    assert said == (
        "8 cells at a time, one thread each (8 cores; 16.0 GB of memory free, 1.5 GB assumed for"
        " each; hydra.launcher.n_jobs=N sets another number)"
    )
    assert parallelism(whole(JOBLIB), 12).describe(3).startswith("3 cells at a time, one thread")
    assert parallelism(whole(), 12).describe(12) == "1 cell at a time"


def test_an_explicit_n_jobs_takes_precedence(machine: Any) -> None:
    machine(8, 10)
    config = whole(JOBLIB, "hydra.launcher.n_jobs=5")
    found = parallelism(config, 12)
    assert (found.cells, found.threads) == (5, None)
    assert found.describe(12) == "5 cells at a time"
    assert found.overrides(config) == ["hydra.launcher.n_jobs=5"]


def test_several_threads_per_cell_reduce_the_number_of_parallel_cells(machine: Any) -> None:
    machine(8, None)
    found = parallelism(whole(JOBLIB, "trainer.threads=3"), 12)
    assert (found.cells, found.threads) == (2, 3)


def test_the_number_of_parallel_cells_is_the_number_of_gpus_times_cells_per_gpu(
    machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(64, None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    config = whole(JOBLIB, "trainer=auto", "trainer.threads=null", "trainer.cells_per_gpu=2")
    assert parallelism(config, 99).cells == 8
    assert parallelism(whole(JOBLIB), 99).cells == 64


def test_an_invalid_n_jobs_is_refused(tmp_path: Path) -> None:
    """The error is raised before any work or output."""
    with pytest.raises(ConfigError, match=r"`hydra.launcher.n_jobs` must be a whole number other"):
        parallelism(whole(JOBLIB, "hydra.launcher.n_jobs=0"), 2)
    done = started(tmp_path, "-m", *TINY, JOBLIB, "hydra.launcher.n_jobs=0")
    assert done.returncode == 2, done.stdout
    assert "error: `hydra.launcher.n_jobs`" in done.stderr
    assert not list(tmp_path.rglob("sweep.json"))


def test_setting_n_jobs_to_minus_one_uses_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")
    assert parallelism(whole(JOBLIB, "hydra.launcher.n_jobs=-1"), 12).cells == 1


def test_submitit_starts_every_cell_at_once() -> None:
    assert parallelism(whole("hydra/launcher=submitit_local"), 7).cells == 7
    slurm = parallelism(whole("hydra/launcher=submitit_slurm"), 7)
    assert (slurm.cells, slurm.threads) == (64, 4)


def test_a_single_cell_uses_all_cores_with_any_launcher(tmp_path: Path) -> None:
    """The launcher that an experiment sets is used only for sweeps."""
    done = started(tmp_path, *TINY, JOBLIB, "trainer.threads=null", "trainer.progress=lines",
                   LOKY_MAX_CPU_COUNT="1")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "1 thread," in done.stdout
