"""Decides how many cells of a sweep run in parallel on this machine, and with how many threads
each."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from backdoor_lab.core import resources
from backdoor_lab.core.errors import ConfigError, many
from backdoor_lab.core.terminal import size_words

RESOLVER = "cells_at_once"
PROCESS_BYTES, WIDTH_BYTES = 1_000_000_000, 31_250_000
"""The bytes of memory assumed for a cell: `PROCESS_BYTES`, and `WIDTH_BYTES` per unit of the
network's width. At width 16, most cells need between 1 and 1.5 GB."""
FULL_WIDTH = 64


@dataclass(frozen=True)
class Parallelism:
    """How a sweep runs cells in parallel.

    `cells`: how many run at the same time. `threads`: the threads of each cell; if None, the cores
    are divided among the cells. `why`: the reason for these numbers, shown to the user; empty if
    the launcher's settings determine them. `here`: whether the cells run on this machine.
    """

    cells: int
    threads: int | None = None
    why: str = ""
    here: bool = True

    @property
    def trainer(self) -> dict[str, int]:
        """The settings to change in the `trainer` group: `threads`, unless `threads` is None."""
        return {} if self.threads is None else {"threads": self.threads}

    def overrides(self, config: DictConfig) -> list[str]:
        """Returns the overrides that pass the number of parallel cells and the number of threads to
        every cell. Without these overrides, the process of each cell would determine both numbers
        on its own and might arrive at others."""
        found = [f"trainer.{key}={value}" for key, value in self.trainer.items()]
        if "n_jobs" in config.hydra.launcher:
            found.append(f"hydra.launcher.n_jobs={self.cells}")
        return found

    def describe(self, left: int) -> str:
        """One line for the user about a sweep with `left` cells to run."""
        cells = min(self.cells, left)
        said = f"{many(cells, 'cell')} at a time"
        if self.threads is not None:
            said += f", {'one thread' if self.threads == 1 else f'{self.threads} threads'} each"
        return f"{said} ({self.why})" if self.why else said


def automatic(config: DictConfig) -> Parallelism:
    """The parallelism that cores and free memory allow, with one thread per cell unless
    `trainer.threads` is set. If cells run on GPUs, `trainer.cells_per_gpu` of them share each
    GPU."""
    trainer = _trainer(config)
    places = _gpu_places(trainer)
    if places:
        return Parallelism(places, _threads(trainer), "one per GPU slot")
    threads = _threads(trainer) or 1
    cores, memory = _machine()
    cells = max(1, cores // threads)
    why = many(cores, "core")
    if memory is not None:
        each = cell_bytes(config)
        cells = max(1, min(cells, memory // each))
        why += f"; {size_words(memory)} of memory free, {size_words(each)} assumed for each"
    return Parallelism(cells, threads, f"{why}; hydra.launcher.n_jobs=N sets another number")


def cell_bytes(config: DictConfig) -> int:
    """The memory, in bytes, that is assumed for a cell with this configuration."""
    width = OmegaConf.select(config, "model.width")
    known = type(width) is int and width > 0
    return PROCESS_BYTES + WIDTH_BYTES * (width if known else FULL_WIDTH)


def check_processes(config: DictConfig) -> None:
    """Raises ConfigError if the number of processes is invalid. Does not import torch."""
    raw: Any = OmegaConf.to_container(config.hydra.launcher, resolve=False)
    if "n_jobs" in raw and RESOLVER not in str(raw["n_jobs"]):
        jobs_of(config.hydra.launcher)


def parallelism(config: DictConfig, cells: int) -> Parallelism:
    """How many cells the configured launcher runs in parallel in a sweep of `cells` cells. Raises
    ConfigError if the number of processes is invalid."""
    launcher, trainer = config.hydra.launcher, _trainer(config)
    raw: Any = OmegaConf.to_container(launcher, resolve=False)
    if RESOLVER in str(raw.get("n_jobs")):
        return automatic(config)
    if "n_jobs" in raw:
        return Parallelism(jobs_of(launcher), _threads(trainer))
    if "LocalLauncher" in str(raw.get("_target_")):
        return Parallelism(cells, _threads(trainer))
    if raw.get("array_parallelism"):
        threads = _threads(trainer) or raw.get("cpus_per_task")
        return Parallelism(int(raw["array_parallelism"]), threads, here=False)
    return Parallelism(parallel(launcher), _threads(trainer))


def parallel(launcher: Any) -> int:
    """The number of cells that run in parallel on this machine according to the launcher's
    settings, or 1 if they do not state a number."""
    ray = launcher.get("ray")
    if ray is not None:
        return max(1, int(_machine()[0] // (ray.remote.get("num_cpus") or 1)))
    return jobs_of(launcher) if "n_jobs" in launcher else 1


def jobs_of(launcher: Any) -> int:
    """The number of processes that joblib starts. Raises ConfigError if `n_jobs` is not a nonzero
    integer."""
    from joblib import effective_n_jobs  # type: ignore[import-untyped]

    asked = launcher.get("n_jobs")
    if isinstance(asked, bool) or not isinstance(asked, int) or asked == 0:
        raise ConfigError(
            f"`hydra.launcher.n_jobs` must be a whole number other than 0, got {asked!r}:"
            " give the number of parallel cells, or -1 for one per core; the default depends on the"
            " machine"
        )
    return asked if asked > 0 else int(effective_n_jobs(asked))


@functools.cache
def _machine() -> tuple[int, int | None]:
    # The result is cached because free memory varies, and all decisions in a process must agree.
    return resources.cores(), resources.free_memory()


def _trainer(config: DictConfig) -> dict[str, Any]:
    found = OmegaConf.select(config, "trainer")
    said: Any = {} if found is None else OmegaConf.to_container(found, resolve=True)
    return said if isinstance(said, dict) else {}


def _threads(trainer: dict[str, Any]) -> int | None:
    """The value of `trainer.threads`; None if it is null or invalid (`check_trainer` reports
    that)."""
    threads = trainer.get("threads")
    return threads if type(threads) is int and threads > 0 else None


def _gpu_places(trainer: dict[str, Any]) -> int:
    if trainer.get("accelerator") == "cpu":
        return 0
    import torch

    share = trainer.get("cells_per_gpu")
    return torch.cuda.device_count() * (share if type(share) is int and share > 0 else 1)
