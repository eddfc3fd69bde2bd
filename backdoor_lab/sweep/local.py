"""Cells on this machine: Hydra's launchers `basic` and `joblib`, with workers of our own.

Of the launcher only its settings are used. Each worker runs one cell at a time, so when one
dies, the driver knows whose cell it was and how it ended, and the other workers go on.
"""

from __future__ import annotations

import logging
import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import hydra.version
from hydra._internal.callbacks import Callbacks
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobRuntime, JobStatus, run_job, setup_globals
from hydra.types import HydraContext
from omegaconf import DictConfig, open_dict

from backdoor_lab import stopping
from backdoor_lab.sweep.loss import Ended, Job, Loss
from backdoor_lab.sweep.workers import Died, Worker, ready

log = logging.getLogger(__name__)
LAUNCHERS = ("BasicLauncher", "JoblibLauncher")
POLL = 0.2


def is_local(launcher: Any) -> bool:
    """Whether a launcher runs its cells in workers of this process."""
    return type(launcher).__name__ in LAUNCHERS


def run_local(
    launcher: Any, jobs: Sequence[Job], at_once: int, over: Callable[[], bool]
) -> Iterator[Ended]:
    """Runs cells and tells of each as it ends; starts none any more once `over()` is true."""
    waiting = deque(jobs)
    busy: dict[Worker, Job] = {}
    idle: list[Worker] = []
    try:
        while True:
            while waiting and len(busy) < at_once and not over():
                worker = idle.pop() if idle else Worker(partial(_run, launcher.task_function))
                worker.send(_composed(launcher, waiting[0]))
                busy[worker] = waiting.popleft()
            if not busy:
                return
            for worker in ready([*busy], POLL):
                job, loss = busy.pop(worker), _loss(worker)
                if loss is None:
                    idle.append(worker)
                else:
                    worker.retire()
                yield Ended(job.asked, loss)
    finally:
        for worker in busy:
            worker.stop()
        for worker in idle:
            worker.retire()


def _composed(launcher: Any, job: Job) -> DictConfig:
    loader = launcher.hydra_context.config_loader
    config = loader.load_sweep_config(launcher.config, job.overrides)
    with open_dict(config):
        config.hydra.job.id = f"{config.hydra.job.name}_{job.number}"
        config.hydra.job.num = job.number
    return config


def _loss(worker: Worker) -> Loss | None:
    try:
        stopped = worker.result()
    except Died as death:
        return Loss(death.code, death.pid)
    # A stop that was meant for this worker alone: as good as a kill, were it not so polite.
    return Loss(-signal.SIGTERM) if stopped and not stopping.requested() else None


def _run(task: Callable[[DictConfig], Any], config: DictConfig) -> bool:
    """Runs one cell as Hydra's launchers do; whether this process was asked to stop."""
    hydra.version.setbase("1.3")
    setup_globals()
    JobRuntime.instance().set("name", config.hydra.job.name)
    HydraConfig.instance().set_config(config)
    # Only the callbacks are ever used of it; the configuration is composed already.
    context = HydraContext(config_loader=None, callbacks=Callbacks(config))
    returned = run_job(
        hydra_context=context,
        task_function=task,
        config=config,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )
    if returned.status is not JobStatus.COMPLETED:
        log.error("%s", "".join(traceback.format_exception(returned._return_value)))
    return stopping.requested()
