"""Estimates what a sweep has to compute, and how much time and disk space it needs."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backdoor_lab.attacks.poison import clean
from backdoor_lab.core.atomic_io import canonical
from backdoor_lab.core.lazy import torch
from backdoor_lab.core.store import Artifact, Store
from backdoor_lab.core.types import Dataset
from backdoor_lab.data.cache import open_dataset
from backdoor_lab.defenses.base import OracleControl, SampleFilter
from backdoor_lab.defenses.networks import ModelRepair
from backdoor_lab.defenses.none import NoDefense
from backdoor_lab.numerics.layers import AUTOENCODER, FeatureHook
from backdoor_lab.pipeline.cell import Cell
from backdoor_lab.pipeline.cell_pipeline import CellPipeline
from backdoor_lab.pipeline.progress import Progress
from backdoor_lab.pipeline.stages.training import train_stage
from backdoor_lab.pipeline.stages.triggered import triggered_test
from backdoor_lab.results.stages import is_at_or_before
from backdoor_lab.sweep.calibrate import Rate, Speed
from backdoor_lab.sweep.sizes import sizes_of
from backdoor_lab.training.autoencoder import DIMS
from backdoor_lab.training.classifier import Classifier
from backdoor_lab.training.device import ComputeDevice
from backdoor_lab.training.models import build_model
from backdoor_lab.training.train import TrainingJob

MEASURE, TRANSFORMED, TRAIN_ACCURACY = MEASUREMENTS = ("measure", "transformed", "train_accuracy")
"""The stages whose output no other stage uses."""
FLOAT32 = 4


@dataclass
class Amount:
    """How many images are trained on (counted once per epoch), evaluated, and used to compute
    features."""

    trained: int = 0
    measured: int = 0
    extracted: int = 0

    def seconds(self, speed: Speed) -> Rate:
        """The time to process these images sequentially at this speed."""
        parts = [(self.trained, speed.train), (self.measured, speed.measure),
                 (self.extracted, speed.extract)]  # fmt: skip
        return Rate(sum(n * each.now for n, each in parts), sum(n * r.idle for n, r in parts))


@dataclass
class Work:
    """The remaining work of a sweep.

    `cells` lists every cell with its state. `amounts` lists, for each cell that needs computation,
    its kind and how many images it processes. Cells of the same kind have the same model, recipe
    and training data; `kinds` maps each kind to one of its cells. `trainings` is the number of
    networks to train; `bytes` is the size of the networks and features to be stored.
    """

    cells: list[tuple[Cell, str]] = field(default_factory=list)
    kinds: dict[str, Cell] = field(default_factory=dict)
    amounts: list[tuple[str, Amount]] = field(default_factory=list)
    trainings: int = 0
    bytes: int = 0


class _MissingError(Exception):
    """Raised by `_Look` for a stage that is not stored."""


class _Look(Store):
    """A read-only store that computes nothing. `missing` lists the requested stages that are not
    stored.

    `get` raises _MissingError if a stage is not stored. It returns an empty artifact for a missing
    measurement, since no other stage depends on measurements.
    """

    def __init__(self, root: Path | str) -> None:
        super().__init__(root, read_only=True)
        self.missing: list[str] = []

    def get(
        self, stage: str, inputs: dict[str, Any], make: Callable[[Path], dict[str, Any]]
    ) -> Artifact:
        found = self.find(stage, inputs)
        if found is not None:
            return found
        self.missing.append(stage)
        if stage not in MEASUREMENTS:
            raise _MissingError(stage)
        return Artifact(self.scratch(stage, inputs), "", {}, made=False, seconds=0.0)


def missing_from(cell: Cell, store_root: Path | str, machine: ComputeDevice) -> list[str]:
    """The stages of a cell that are not in the store, in order.

    Empty if only the record is missing. If later stages depend on a missing stage, the list ends
    with this stage: without its output, it is unknown whether the later stages are stored.
    """
    look = _Look(store_root)
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(_MissingError):
        chain = CellPipeline(cell, look, machine, Progress(Path(folder), "", "none"))
        chain.defended(chain.attack())
    return look.missing


def _clean_is_there(cell: Cell, data: Dataset, machine: ComputeDevice) -> bool:
    """Whether the store contains the network that was retrained on the clean training set."""
    look = _Look(cell.store_root)
    with contextlib.suppress(_MissingError):
        train_stage("retrain", cell, clean(data.train), look, machine, _untrained)
    return not look.missing


def _untrained(job: TrainingJob, scratch: Path) -> Classifier:
    raise AssertionError("an estimate must not train a network; please report this bug")


def estimate(cells: Sequence[Cell], finished: set[str], machine: ComputeDevice) -> Work:
    """Estimate the remaining work of `cells`. `finished`: the ids of the completed cells.

    A network that several cells share is counted once if its training set does not depend on a
    filter's result: the network of an attack, and the network trained on the clean set.

    Not included: what a trigger prepares, what a filter or a repair computes or trains, networks
    retrained after a filter removed images, and the disk space of poisoned images and checkpoints.
    """
    work, shared = Work(), set[str]()
    sizes: dict[str, tuple[int, int]] = {}
    for cell in cells:
        if cell.id in finished:
            work.cells.append((cell, "done"))
            continue
        missing = missing_from(cell, cell.store_root, machine)
        work.cells.append((cell, f"from {missing[0]} on" if missing else "record only"))
        store = Store(cell.store_root, read_only=True)
        data = open_dataset(cell.parts.data, store)
        size = canonical([cell.model, cell.protocol["layer"], data.train.digest])
        if size not in sizes:
            sizes[size] = footprint(cell, data)
        amount = _count(work, cell, data, missing, sizes[size], shared, machine)
        kind = canonical([cell.model, cell.recipe.decides(), data.train.digest])
        if amount != Amount():
            work.kinds.setdefault(kind, cell)
            work.amounts.append((kind, amount))
    return work


def footprint(cell: Cell, data: Dataset) -> tuple[int, int]:
    """The size in bytes of a network's weights, and of one image's features at the cell's layer."""
    channels, height, width = data.train.shape
    net = build_model(cell.model, channels=channels, classes=len(data.classes), seed=0).eval()
    weights = sum(value.nbytes for value in net.state_dict().values())
    layer = cell.protocol["layer"]
    if layer == AUTOENCODER:
        return weights, FLOAT32 * DIMS
    with torch.no_grad(), FeatureHook(net, layer) as tap:
        net(torch.zeros(1, channels, height, width))
    return weights, FLOAT32 * tap.values.shape[1]


def _count(
    work: Work, cell: Cell, data: Dataset, missing: list[str], size: tuple[int, int],
    shared: set[str], machine: ComputeDevice,
) -> Amount:  # fmt: skip
    poisoned, added, n_train = sizes_of(cell, data)
    n_test = len(data.test) + len(triggered_test(cell, data).attacked)
    # A measurement is missing if it is in the list, or if it comes after the stage that ends the
    # list.
    passes = {MEASURE: n_test, TRANSFORMED: n_test * len(cell.asr_under), TRAIN_ACCURACY: n_train}
    amount = Amount(measured=sum(passes.get(stage, 0) for stage in missing))
    beyond = [stage for stage in missing if stage not in MEASUREMENTS]
    if not beyond:
        return amount
    stage = beyond[0]
    network = [data.train.digest, cell.seed, cell.model, cell.recipe.decides()]
    trainings = int(cell.retrain and not isinstance(cell.defense, ModelRepair))
    if trainings and data.attack is None and _leaves_clean(cell, poisoned, added):
        again = ["clean again", cell.same_seed, *network]
        trainings = int(_once(shared, again) and not _clean_is_there(cell, data, machine))
    amount.measured += (passes[MEASURE] + passes[TRANSFORMED]) * int(cell.retrain)
    attacked = [cell.attack, *network] if added else ["clean", *network]
    given = cell.parts.attacked
    attacked += [] if given is None else [given.decides()]
    if is_at_or_before(stage, "train") and _once(shared, attacked):
        trainings += given is None
        amount.measured += n_test + (0 if given is None else n_train)
    transformed = ["transformed", cell.asr_under, *attacked]
    if is_at_or_before(stage, "train") and _once(shared, transformed):
        amount.measured += passes[TRANSFORMED]
    own = is_at_or_before(stage, "poison") and cell.trigger.uses_surrogate
    surrogates = int(own and _once(shared, ["surrogate", *network]))
    trainings += surrogates
    looked = ["features", attacked, cell.protocol["layer"]]
    if is_at_or_before(stage, "extract") and _once(shared, looked):
        amount.extracted += n_train
        work.bytes += n_train * size[1]
    repaired = int(cell.retrain and isinstance(cell.defense, ModelRepair))
    work.bytes += (trainings + repaired) * size[0]
    work.trainings += trainings
    amount.trained = trainings * n_train * cell.recipe.epochs
    # Every network except the surrogate is also evaluated on its own training set.
    amount.measured += (trainings - surrogates) * n_train
    return amount


def _leaves_clean(cell: Cell, poisoned: int, added: int) -> bool:
    """Whether the defense is certain to leave exactly the clean training set: there is no poison,
    or all of it was appended and is removed, or all originals are restored."""
    defense = cell.defense
    if isinstance(defense, OracleControl):
        appended = cell.plan.placement == "append" and added == poisoned
        return defense.restores or appended or added == 0
    idle = isinstance(defense, NoDefense) or (
        isinstance(defense, SampleFilter) and "epsilon" in cell.requires
    )
    return added == 0 and idle


def _once(shared: set[str], what: list[Any]) -> bool:
    key = canonical(what)
    new = key not in shared
    shared.add(key)
    return new
