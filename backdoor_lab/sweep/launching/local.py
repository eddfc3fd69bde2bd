"""Runs cells on this machine for Hydra's launchers `basic` and `joblib`, in this package's workers.

The launchers only provide settings. Each worker runs one cell at a time: if it dies, the driver
knows which cell was running and how the process ended, and the other workers continue.
"""

from __future__ import annotations

import logging
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import hydra.version
from hydra._internal.callbacks import Callbacks
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobRuntime, run_job, setup_globals
from hydra.types import HydraContext
from omegaconf import DictConfig, open_dict

from backdoor_lab.core import shutdown
from backdoor_lab.core.atomic_io import explained, no_room
from backdoor_lab.core.errors import reason_of
from backdoor_lab.plugins.trust import Trust, adopt, trusted
from backdoor_lab.sweep.launching.loss import Ended, Job, LostProcess, failed_in
from backdoor_lab.sweep.launching.workers import Worker, WorkerDiedError, ready
from backdoor_lab.sweep.manifest import note_failure

log = logging.getLogger(__name__)
LAUNCHERS = ("BasicLauncher", "JoblibLauncher")
POLL = 0.2


def is_local(launcher: Any) -> bool:
    """Whether this launcher's cells run in worker processes of this package."""
    return type(launcher).__name__ in LAUNCHERS


def run_local(
    launcher: Any, jobs: Sequence[Job], at_once: int, over: Callable[[], bool]
) -> Iterator[Ended]:
    """Runs cells in at most `at_once` workers, and yields each cell when it ends. Starts no more
    cells once `over()` is true."""
    run = partial(_run, launcher.task_function, trusted())
    waiting = deque(jobs)
    busy: dict[Worker, Job] = {}
    idle: list[Worker] = []
    try:
        while True:
            while waiting and len(busy) < at_once and not over():
                worker = idle.pop() if idle else Worker(run)
                worker.send(_composed(launcher, waiting[0]))
                busy[worker] = waiting.popleft()
            if not busy:
                return
            for worker in ready([*busy], POLL):
                ended = _ended(busy.pop(worker), worker)
                if ended.loss is None:
                    idle.append(worker)
                else:
                    worker.retire()
                yield ended
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


def _ended(job: Job, worker: Worker) -> Ended:
    try:
        stopped, status = worker.result()
    except WorkerDiedError as death:
        return Ended(job.asked, LostProcess(death.code, death.pid))
    if stopped and not shutdown.requested():
        # Only this worker was asked to stop, not the sweep: treat it as if it had been killed.
        return Ended(job.asked, LostProcess(-signal.SIGTERM))
    return Ended(job.asked, None, failed_in(status))


def _run(task: Callable[[DictConfig], Any], plugins: Trust, config: DictConfig) -> tuple[bool, Any]:
    """Runs one cell as Hydra's launchers do. `plugins` are those that the driver trusts. Returns
    whether a stop was requested, and the value that the task returned. An error raised by Hydra
    itself is recorded as the failure of the cell."""
    try:
        adopt(plugins)
        status = _run_job(task, config)
    except Exception as error:
        folder = Path(config.hydra.sweep.dir) / config.hydra.sweep.subdir
        full = explained(error, folder) if isinstance(error, OSError) and no_room(error) else None
        reason = reason_of(full or error)
        log.error("%s: %s", folder.name, reason)
        status = note_failure(folder, reason)
    return shutdown.requested(), status


def _run_job(task: Callable[[DictConfig], Any], config: DictConfig) -> Any:
    hydra.version.setbase("1.3")
    setup_globals()
    JobRuntime.instance().set("name", config.hydra.job.name)
    HydraConfig.instance().set_config(config)
    # Hydra uses only the callbacks of this context, because the configuration is already composed.
    context = HydraContext(config_loader=None, callbacks=Callbacks(config))
    returned = run_job(
        hydra_context=context,
        task_function=task,
        config=config,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )
    return returned.return_value
