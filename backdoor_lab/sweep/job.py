"""Runs one cell in the process that a launcher chose for it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backdoor_lab import identity
from backdoor_lab.core import shutdown
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.paths import check_writable
from backdoor_lab.core.small_files import decode, read_small
from backdoor_lab.results.records import parse
from backdoor_lab.sweep.manifest import (
    DIVERGED,
    RECORD,
    command_line,
    finished,
    mend,
    place,
    sweep_file,
)
from backdoor_lab.sweep.preflight import preflight
from backdoor_lab.tables.worth import cautions

if TYPE_CHECKING:
    from backdoor_lab.pipeline.cell import Cell

log = logging.getLogger(__name__)


def run_job(
    config: dict[str, Any], folder: Path, parallel_cells: int, *, in_sweep: bool = False
) -> str:
    """Run the cell of a resolved configuration in `folder`. Returns its status.

    In a sweep, the name of the folder is the id that the cell had when the sweep was checked.
    Raises ConfigError or DataError before any work starts, and StoppedError if a stop is requested.
    """
    shutdown.check()
    cell = preflight().identify(config)
    if in_sweep and folder.name != cell.id:
        raise ConfigError(
            f"the id of this cell was {folder.name} when the sweep was checked and is {cell.id}"
            " now, so its configuration or data changed in the meantime: repeat the command"
        )
    if not in_sweep:
        identity.warn([cell.code])
    check_writable(folder)
    # Write warnings to the cell's log: on the terminal, they would break the table of the sweep.
    logging.captureWarnings(in_sweep)
    if finished(folder, cell.id, quiet=True):
        _tell(folder, in_sweep)
        return "done"
    preflight().check(cell)
    mend(folder)
    if not in_sweep:
        preflight().publish([cell])
    status = _compute(cell, folder, parallel_cells, in_sweep)
    _tell(folder, in_sweep)
    return status


def _compute(cell: Cell, folder: Path, parallel_cells: int, in_sweep: bool) -> str:
    """Run a cell that has no record of a completed run. Returns its status."""
    from backdoor_lab.core.store import Store
    from backdoor_lab.pipeline.cell_pipeline import CellPipeline, run_cell
    from backdoor_lab.pipeline.progress import Progress
    from backdoor_lab.training.device import held, machine_of
    from backdoor_lab.training.logs import logger_of

    config, trainer = cell.config, cell.trainer
    title = f"[{place(folder.parent, cell.id)}{cell.id.rpartition('-')[0]}]"
    command = sweep_file(folder.parent).get("command") or command_line()
    wanted = machine_of(trainer, parallel_cells=parallel_cells)
    with held(wanted, trainer["cells_per_gpu"]) as machine:
        chain = CellPipeline(
            cell,
            Store(cell.store_root, folder.parent / DIVERGED if in_sweep else None),
            machine,
            Progress(folder, title, _shown(trainer["progress"], in_sweep)),
            logger=lambda stage: logger_of(config["logger"], stage, folder),
            checkpoint=trainer["checkpoint"],
        )
        return str(run_cell(cell, folder, chain, command=command)["status"])


def _shown(progress: str, in_sweep: bool) -> str:
    """Returns how the process that runs the cell displays progress. In a sweep, cells draw no
    progress bar: the driver shows their progress (see live.py)."""
    return "lines" if in_sweep and progress in ("auto", "bar") else progress


def _tell(folder: Path, in_sweep: bool) -> None:
    """Log the metrics of a single cell in one line. Logs nothing in a sweep, which has tables."""
    if in_sweep:
        return
    data = read_small(folder / RECORD)
    record = decode(data)
    if record["status"] != "done":
        return
    poisoned, left = (
        "–" if record["counts"][key] is None else record["counts"][key]
        for key in ("n_poisoned", "pois_left")
    )
    nat1, asr1, nat2, asr2 = (
        "–" if record[key] is None else f"{100 * record[key]:.2f}"
        for key in ("nat1", "asr1", "nat2", "asr2")
    )
    log.warning(
        "Nat1 %s  ASR1 %s  #Pois %s  #Pois Left %s  Nat2 %s  ASR2 %s  %s",
        nat1, asr1, poisoned, left, nat2, asr2, folder / "record.json",
    )  # fmt: skip
    for line in cautions([parse(data)]):
        log.warning("%s", line)
