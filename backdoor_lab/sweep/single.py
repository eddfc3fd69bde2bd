"""Checks a single cell before Hydra creates its folder, so that a rejected command leaves no
files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from backdoor_lab.core.paths import check_writable
from backdoor_lab.sweep.compose import plain
from backdoor_lab.sweep.manifest import clear_way, finished


class EndedEarly(BaseException):
    """Raised to end a command before its cell runs. `error` is the reason, or None for a dry run.

    Not a subclass of Exception: Hydra would turn an Exception into a warning and continue.
    """

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__(error)
        self.error = error


class BeforeRun(Callback):
    """A Hydra callback, configured in `conf/config.yaml`, that runs before a single cell."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Check the cell. Raises EndedEarly if it must not run."""
        found: Exception | None = None
        try:
            if _checked(config):
                return
        except Exception as error:
            found = error
        raise EndedEarly(found)


def _checked(config: DictConfig) -> bool:
    """Check the cell. Returns whether to run it; with `dry_run`, prints the estimate and returns
    False."""
    from backdoor_lab.sweep.preflight import preflight

    HydraConfig.instance().set_config(config)
    values = plain(config)
    cell = preflight().identify(values)
    folder = Path(str(config.hydra.run.dir))
    left = not finished(folder, cell.id, quiet=True)
    if values.get("dry_run") or left:
        preflight().check(cell)
    if left:
        from backdoor_lab.sweep.memory import check_fits  # Imports torch.

        check_fits(preflight().memory(cell), share=cell.trainer["cells_per_gpu"])
    if values.get("dry_run"):
        print(_estimate(cell, folder, config.hydra))
        return False
    check_writable(folder)
    clear_way(folder)
    return True


def _estimate(cell: Any, folder: Path, settings: Any) -> str:
    from backdoor_lab.sweep.forecast import estimate_text
    from backdoor_lab.sweep.launching.parallel import parallel
    from backdoor_lab.sweep.memory import describe_memory
    from backdoor_lab.sweep.preflight import preflight
    from backdoor_lab.training.device import machine_of

    machine = machine_of(cell.trainer, parallel_cells=parallel(settings.launcher))
    done = {cell.id} if finished(folder, cell.id) else set()
    said = estimate_text([cell], done, machine, at_once=1, processes=0)
    return "\n".join([said, *describe_memory([preflight().memory(cell)] * (not done), 1)])
