"""Runs cells with launchers that start their own processes: submitit, Slurm, Ray, other plugins.

The launcher starts a process, which runs the cell in a child process (`supervised`) and returns how
the child ended. If the process that the launcher started is lost too, the launcher returns an error
as the result of the cell.
"""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from subprocess import CalledProcessError
from types import SimpleNamespace
from typing import Any

from hydra.core.utils import JobStatus

from backdoor_lab.core.errors import failed_status, reason_of
from backdoor_lab.sweep.launching.loss import Ended, Job, LostProcess, failed_in
from backdoor_lab.sweep.launching.workers import Worker, WorkerDiedError

log = logging.getLogger(__name__)
ENDED_WITHIN = 120.0
"""Seconds within which a cluster kills a task that it has asked to stop."""
RAISED = ("FailedJobError", "RayTaskError")
"""The names of the errors with which launchers report that a task raised an exception."""


def supervised(run: Callable[[], Any]) -> Any:
    """Call `run` in a forked child process. Returns its result, or a LostProcess if the child died.

    Call this before torch is imported (see workers.py). If the cluster stops this process, the
    child is stopped too.
    """
    worker = Worker(lambda _: run(), "fork")
    worker.send(None)
    try:
        found = worker.result()
    except WorkerDiedError as death:
        return LostProcess(death.code, death.pid)
    except CalledProcessError:
        # Submitit's signal handler raised this: the cluster is about to end the task, and has
        # interrupted the handler's `scontrol requeue`. A task that returned now would count as
        # finished, so wait for the end; the cluster decides whether to requeue the task.
        worker.stop()
        time.sleep(ENDED_WITHIN)
        raise SystemExit(1) from None
    except BaseException:
        worker.stop()
        raise
    worker.retire()
    return found


def run_remote(launcher: Any, jobs: Sequence[Job]) -> Iterator[Ended]:
    """Launch cells and yield how each one ended. Cells that never ran because the launcher failed
    are omitted."""
    overrides = [job.overrides for job in jobs]
    try:
        with _every_job_awaited(launcher):
            returned = launcher.launch(overrides, initial_job_idx=jobs[0].number)
    except Exception as error:
        log.error("the launcher failed: %s: %s", type(error).__name__, error)
        return
    for job, result in zip(jobs, returned, strict=True):
        yield Ended(job.asked, _loss(result), failed_in(_value(result)))


def _loss(result: Any) -> LostProcess | None:
    if isinstance(result, Exception):
        text = " ".join(str(result).split("Error stream")[0].split())[:300]
        said = f"{type(result).__name__}: {text}"
        if type(result).__name__.startswith(RAISED):
            log.error("%s", result)
            return None
        return LostProcess(None, said=said)
    value = _value(result)
    return value if isinstance(value, LostProcess) else None


def _value(result: Any) -> Any:
    """Returns what the task of a job returned, the status of a failed cell if Hydra itself raised
    an error, or None if the launcher returned an error."""
    if isinstance(result, Exception):
        return None
    if result.status is JobStatus.COMPLETED:
        return result._return_value
    return failed_status(reason_of(result._return_value))


@contextmanager
def _every_job_awaited(launcher: Any) -> Iterator[None]:
    """Make the launcher wait for all jobs. If a job fails, its result is the error.

    By default, the launcher raises the first error while other jobs are still running, without
    stating which job failed.
    """
    holder, name, patient = _patience(type(launcher).__module__)
    if holder is None:
        yield
        return
    original = getattr(holder, name)
    setattr(holder, name, patient)
    try:
        yield
    finally:
        setattr(holder, name, original)


def _patience(plugin: str) -> tuple[Any, str, Any]:
    """How to patch a launcher plugin so that it waits for all jobs: the object to patch, the name
    of its attribute, and the attribute's new value. The object is None if no patch is needed."""
    if "hydra_submitit_launcher" in plugin:
        submitit = importlib.import_module("submitit")
        submit = submitit.AutoExecutor.map_array
        return submitit.AutoExecutor, "map_array", lambda *a: [_Awaited(j) for j in submit(*a)]
    if "hydra_ray_launcher" in plugin:
        core = importlib.import_module("hydra_plugins.hydra_ray_launcher._core")
        return core, "ray", SimpleNamespace(get=partial(_outcome, core.ray.get))
    return None, "", None


def _outcome(get: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return get(*arguments)
    except Exception as error:
        return error


class _Awaited:
    """A submitit job that returns an error as its result instead of raising it."""

    def __init__(self, job: Any) -> None:
        self.job = job

    def results(self) -> list[Any]:
        return [_outcome(lambda: self.job.results()[0])]
