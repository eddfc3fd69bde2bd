"""Runs a sweep: checks all cells before any work, launches those not done, and writes the
tables."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf

from backdoor_lab import identity
from backdoor_lab.core import shutdown
from backdoor_lab.core.errors import (
    EXIT_DONE,
    ConfigError,
    LabError,
    many,
)
from backdoor_lab.core.paths import absolute, check_writable
from backdoor_lab.core.small_files import make_folder, write_json, write_ours
from backdoor_lab.hydra_options import check_overrides
from backdoor_lab.sweep.compose import ConfigComposer
from backdoor_lab.sweep.conclusion import conclude
from backdoor_lab.sweep.launching.launch import Launch
from backdoor_lab.sweep.launching.loss import LostProcess, record_loss
from backdoor_lab.sweep.launching.parallel import Parallelism, check_processes, parallelism
from backdoor_lab.sweep.live import live, quiet_cells
from backdoor_lab.sweep.manifest import (
    RequestedCell,
    clear_way,
    command_line,
    distinguishing_options,
    finished,
    mend,
    merge_asked,
    spread,
    sweep_file,
)
from backdoor_lab.sweep.roots import labels_of, requested, with_patterns

if TYPE_CHECKING:
    from hydra.types import HydraContext, TaskFunction
    from omegaconf import DictConfig

    from backdoor_lab.attacks.plan import SameClassError
    from backdoor_lab.pipeline.cell import Cell
    from backdoor_lab.sweep.memory import MemoryNeed
    from backdoor_lab.sweep.preflight import Preflight

# This must come before the import of BasicSweeper: it executes all plugin modules again.
Plugins.instance()
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper  # noqa: E402

log = logging.getLogger(__name__)
NAME = "hydra_plugins.backdoor_lab_sweeper"


class ResumeSweeper(BasicSweeper):
    """A Hydra sweeper that runs the Cartesian product of all choices, and can resume.

    It differs from BasicSweeper in three ways: all cells are checked before the first one starts;
    cells that are already done are not run again; and the outcome is read from the cells' records,
    not from the launcher.
    """

    _cell_of: Callable[[Sequence[str]], Cell]
    _preflight: Preflight
    _memory: dict[str, MemoryNeed]
    last_code = EXIT_DONE
    """The exit code of the last sweep in this process. Hydra drops the value that `sweep`
    returns."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Prepare as BasicSweeper does, but create the launcher only when there are cells to run:
        the number of parallel cells may depend on the GPUs, and counting GPUs imports torch."""
        self.hydra_context, self.config = hydra_context, config
        self._make_launcher = functools.partial(
            Plugins.instance().instantiate_launcher,
            hydra_context=hydra_context, task_function=task_function, config=config,
        )  # fmt: skip

    def sweep(self, arguments: list[str]) -> int:
        """Run the sweep. Returns the exit code."""
        jobs = self._jobs(arguments)
        folder = Path(str(self.config.hydra.sweep.dir))
        absolute("hydra.sweep.dir", str(folder))
        check_processes(self.config)
        asked, cells, done = self._checked(jobs, folder)
        dry = [cell for cell in cells if cell.config.get("dry_run")]
        left = [each for each in asked if each.id not in done]
        if left or dry:
            from backdoor_lab.sweep.memory import fitted

            at_once = parallelism(self.config, len(asked))
            at_once = fitted([*self._memory.values()], at_once, self.config.trainer.cells_per_gpu)
            self.launcher = self._make_launcher()
            if cells:
                self._tell(folder, dry or cells, at_once, distinguishing_options(asked))
        if dry:
            ResumeSweeper.last_code = EXIT_DONE
            return EXIT_DONE
        check_writable(folder)
        # All checks have passed at this point.
        if left:
            self._preflight.publish()
        self._announce(folder, asked)
        if len(left) < len(asked):
            log.warning("%d of %s already done", len(asked) - len(left), many(len(asked), "cell"))
        failed = self._run(folder, asked, left, at_once) if left else {}
        ResumeSweeper.last_code = conclude(folder, asked, failed)
        return ResumeSweeper.last_code

    def _run(
        self,
        folder: Path,
        asked: Sequence[RequestedCell],
        left: Sequence[RequestedCell],
        at_once: Parallelism,
    ) -> dict[str, str]:
        """Run the cells in `left`, and show each one when it finishes. Returns the status of each
        failed cell, by id."""
        assert self.config is not None
        for each in left:
            clear_way(folder / each.id)
            mend(folder / each.id)
        log.warning(at_once.describe(len(left)))
        settled = [*at_once.overrides(self.config), *quiet_cells(self.config)]
        pinned = [replace(each, overrides=(*each.overrides, *settled)) for each in left]
        with live(folder, asked, left, str(self.config.trainer.progress)):
            return self._launch(folder, spread(pinned), at_once.cells)

    def _jobs(self, arguments: list[str]) -> list[list[str]]:
        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        asked = [*self._parse_config(), *arguments]
        check_overrides(asked)
        overrides = parser.parse_overrides(with_patterns(parser.parse_overrides(asked)))
        jobs: list[list[str]] = self.split_arguments(overrides, None)[0]
        if not jobs:
            raise ConfigError("the sweep has no cells: a choice like glob(*) matched nothing")
        return jobs

    def _checked(
        self, jobs: Sequence[list[str]], folder: Path
    ) -> tuple[list[RequestedCell], list[Cell], set[str]]:
        """Check all cells of the sweep; cells that are done need few checks. Returns the requested
        cells, the cells that need a time estimate, and the ids of the cells that are done."""
        from backdoor_lab.attacks.plan import SameClassError
        from backdoor_lab.sweep.preflight import Preflight

        assert self.hydra_context is not None
        expander: Any = ConfigComposer(self.hydra_context.config_loader, self.config)
        self._preflight, self._memory = (preflight := Preflight()), {}
        self._cell_of = lambda job: preflight.identify(expander.config(job))
        cells: dict[str, tuple[Cell, Sequence[str]]] = {}
        marks: list[identity.Marks] = []
        same: list[SameClassError] = []
        found: list[tuple[int, Cell]] = []
        for number, job in enumerate(jobs, 1):
            with _named(number, jobs):
                try:
                    cell = self._cell_of(job)
                except SameClassError as error:
                    same.append(error)
                    continue
            found.append((number, cell))
            marks.append(cell.code)
            # The same value in two spellings (0.05, 5e-2) makes the same cell.
            cells.setdefault(cell.id, (cell, job))
        # In a second pass, because these checks read images and import torch.
        done: set[str] = set()
        for number, cell in found:
            with _named(number, jobs):
                if cell.id in done or finished(folder / cell.id, cell.id, quiet=True):
                    done.add(cell.id)
                else:
                    preflight.check(cell)
                    self._memory[cell.id] = preflight.memory(cell)
        _tell_left_out(same, len(jobs))
        if len(cells) < len(marks):
            repeated = many(len(marks) - len(cells), "cell")
            log.warning("%s of %d skipped: duplicate", repeated, len(marks))
        identity.warn(marks)
        labels = labels_of([cell for cell, _ in cells.values()])
        asked = [requested(cell, job, labels.get(cell.id)) for cell, job in cells.values()]
        flags = ("dry_run", "estimate_first")
        estimated = [cell for cell, _ in cells.values() if any(map(cell.config.get, flags))]
        return asked, estimated, done

    def _tell(
        self, folder: Path, cells: Sequence[Cell], at_once: Parallelism, options: dict[str, str]
    ) -> None:
        from backdoor_lab.sweep.forecast import estimate_text
        from backdoor_lab.sweep.memory import describe_memory
        from backdoor_lab.training.device import machine_of

        trainer = cells[0].config["trainer"] | at_once.trainer
        machine = machine_of(trainer, parallel_cells=at_once.cells)
        done = {cell.id for cell in cells if finished(folder / cell.id, cell.id)}
        processes = at_once.cells if at_once.here else 1
        said = estimate_text(
            cells, done, machine, at_once=at_once.cells, processes=processes, options=options
        )
        lines = describe_memory([*self._memory.values()], at_once.cells)
        print("\n".join([said, *lines]), flush=True)

    def _announce(self, folder: Path, asked: Sequence[RequestedCell]) -> None:
        assert self.config is not None
        make_folder(folder)
        write_ours(folder / "multirun.yaml", OmegaConf.to_yaml(self.config).encode())
        # Other entries of an existing sweep.json are kept.
        said = sweep_file(folder) | {"schema": 1, "name": folder.name, "command": command_line()}
        said |= {"asked": merge_asked(folder, asked)}
        write_json(folder / "sweep.json", said)

    def _launch(self, folder: Path, left: Sequence[RequestedCell], at_once: int) -> dict[str, str]:
        """Launch the cells. Returns `Launch.failed`."""
        shutdown.install()
        shutdown.forward_to_children()
        launch = Launch(
            self.launcher,
            folder,
            at_once=at_once,
            batch=self.max_batch_size,
            record=lambda each, loss: self._record_loss(folder, each, loss),
        )
        launch.run(left)
        return launch.failed

    def _record_loss(self, folder: Path, each: RequestedCell, loss: LostProcess) -> str:
        assert self.config is not None
        cell, where = self._cell_of(each.overrides), folder / each.id
        return record_loss(cell, where, loss, where / f"{self.config.hydra.job.name}.log")


def register() -> None:
    """Register the sweeper with Hydra, which accepts sweepers only from the package
    `hydra_plugins`."""
    module = sys.modules[__name__]
    if NAME not in sys.modules:
        sys.modules[NAME] = module
        ResumeSweeper.__module__ = NAME
        Plugins.instance().register(ResumeSweeper)


@contextmanager
def _named(number: int, jobs: Sequence[list[str]]) -> Iterator[None]:
    """Add the number and the overrides of the cell to an error raised inside this context."""
    try:
        yield
    except LabError as error:
        where = f"cell {number} of {len(jobs)} ({' '.join(jobs[number - 1])}): "
        raise type(error)(f"{where * (len(jobs) > 1)}{error}") from error


def _tell_left_out(same: Sequence[SameClassError], combinations: int) -> None:
    """Log how many combinations are skipped because source and target are equal. Raises ConfigError
    if all of them are skipped."""
    if not same:
        return
    if len(same) == combinations:
        raise ConfigError(f"no valid cell in {many(combinations, 'combination')}: {same[0]}")
    log.warning("%d of %s skipped: source = target", len(same), many(combinations, "combination"))


register()
