"""What a sweep would do, about how long it would take and how much disk, without doing it."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from backdoor_lab.attacks.plan import asr_test_set, count, cover_count
from backdoor_lab.attacks.poison import clean
from backdoor_lab.data.cache import open_dataset
from backdoor_lab.defenses.base import Filter, TruthControl
from backdoor_lab.defenses.networks import Repair
from backdoor_lab.defenses.none import Keep
from backdoor_lab.errors import many
from backdoor_lab.files import canonical, nearest
from backdoor_lab.reports.terminal import duration, size_words
from backdoor_lab.store import Entry, Store
from backdoor_lab.sweep.cell import Cell, source_of
from backdoor_lab.sweep.chain import Chain
from backdoor_lab.sweep.progress import Progress
from backdoor_lab.sweep.stages import train_stage
from backdoor_lab.sweep.told import class_sizes
from backdoor_lab.training.autoencoder import AUTOENCODER, DIMS
from backdoor_lab.training.batches import Batches
from backdoor_lab.training.fit import Job, new_classifier
from backdoor_lab.training.machine import Machine
from backdoor_lab.training.measure import channel_stats, predictions
from backdoor_lab.training.models import Tap, build_model
from backdoor_lab.training.module import Classifier
from backdoor_lab.types import Dataset, Images

ORDER = (
    "prepare", "poison", "train", "measure", "autoencoder", "clean", "extract", "filter",
    "retrain", "repair",
)  # fmt: skip
MEASURE = "measure"
FLOAT32 = 4
CALIBRATION_S = 1.5
WARM_UP = 2


@dataclass
class Work:
    """What is left to do of a sweep: each cell with its state, how many `trainings`, the
    `seconds` of all of it, one cell after the other, on this machine, and the `bytes` of networks
    and features that it adds to the store."""

    cells: list[tuple[Cell, str]] = field(default_factory=list)
    trainings: int = 0
    seconds: float = 0.0
    bytes: int = 0


class _Missing(Exception):
    """A stage that would have to be computed."""


class _Look(Store):
    """A store that computes nothing. `missing` are the stages that were not there, in order: any
    number of measurements, on which no other stage hangs, and the first of all others."""

    def __init__(self, root: Path | str) -> None:
        super().__init__(root, read_only=True)
        self.missing: list[str] = []

    def get(
        self, stage: str, inputs: dict[str, Any], make: Callable[[Path], dict[str, Any]]
    ) -> Entry:
        found = self.find(stage, inputs)
        if found is not None:
            return found
        self.missing.append(stage)
        if stage != MEASURE:
            raise _Missing(stage)
        return Entry(self.scratch(stage, inputs), "", {}, made=False, seconds=0.0)


def missing_from(cell: Cell, store_root: Path | str, machine: Machine) -> list[str]:
    """The stages of a cell that are not in the store, in order: its measurements up to the first
    other one, on which the rest hangs; none when only the record is missing."""
    look = _Look(store_root)
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(_Missing):
        Chain(cell, look, machine, Progress(Path(folder), "", "none")).walk()
    return look.missing


def _clean_is_there(cell: Cell, data: Dataset, machine: Machine) -> bool:
    """Whether the store has the network that is trained again on the clean set."""
    look = _Look(cell.config["store"]["root"])
    with contextlib.suppress(_Missing):
        train_stage("retrain", cell, clean(data.train), look, machine, _untrained)
    return not look.missing


def _untrained(job: Job, scratch: Path) -> Classifier:
    raise AssertionError("a store that computes nothing asks for no training")


def estimate(cells: Sequence[Cell], finished: set[str], machine: Machine) -> Work:
    """What is left of `cells`, whose ids in `finished` have a record; networks that several
    cells share are counted once, as far as their training sets are known to be one before any
    filter has judged: one attack on one set of images, and the clean set itself.

    Times come from a short calibration on this machine, by itself: some training steps and one
    pass without gradient for each kind of network and image. What a trigger prepares, what a
    filter or a repair computes or trains, and what is trained again after a filter removed much
    are not foreseen; nor is the disk that poisoned images and unfinished trainings take.
    """
    work, shared = Work(), set[str]()
    speeds: dict[str, tuple[float, float]] = {}
    sizes: dict[str, tuple[int, int]] = {}
    for cell in cells:
        if cell.id in finished:
            work.cells.append((cell, "done"))
            continue
        missing = missing_from(cell, cell.config["store"]["root"], machine)
        work.cells.append((cell, f"from {missing[0]} on" if missing else "record only"))
        store = Store(cell.config["store"]["root"], read_only=True)
        data = open_dataset(source_of(cell.config), store)
        kind = canonical([cell.config["model"], cell.recipe.decides(), data.train.digest])
        if kind not in speeds:
            speeds[kind] = calibrate(cell, data, machine)
        size = canonical([cell.config["model"], cell.protocol["layer"], data.train.digest])
        if size not in sizes:
            sizes[size] = footprint(cell, data)
        _count(work, cell, data, missing, speeds[kind], sizes[size], shared, machine)
    return work


def footprint(cell: Cell, data: Dataset) -> tuple[int, int]:
    """The bytes of a network's weights, and of one image's features at the cell's layer."""
    channels, height, width = data.train.shape
    net = build_model(
        cell.config["model"], channels=channels, classes=len(data.classes), seed=0
    ).eval()
    weights = sum(value.nbytes for value in net.state_dict().values())
    layer = cell.protocol["layer"]
    if layer == AUTOENCODER:
        return weights, FLOAT32 * DIMS
    with torch.no_grad(), Tap(net, layer) as tap:
        net(torch.zeros(1, channels, height, width))
    return weights, FLOAT32 * tap.values.shape[1]


def calibrate(cell: Cell, data: Dataset, machine: Machine) -> tuple[float, float]:
    """Seconds per image of training and of a pass without gradient, in this process."""
    training = clean(data.train)
    mean, std = channel_stats(training.base)
    module = new_classifier(
        Job(cell.config["model"], cell.recipe, training, 0, mean, std), machine, total_steps=10**6
    ).to(machine.device)
    torch.set_num_threads(machine.threads)
    optimizer = module.configure_optimizers()["optimizer"]
    batches = Batches(training, cell.recipe, seed=0, device=machine.device)
    endless = itertools.chain.from_iterable(itertools.repeat(batches))
    seen, began = 0, 0.0
    for step, (images, labels) in enumerate(endless):
        if step == WARM_UP:
            began = time.perf_counter()
        optimizer.zero_grad()
        with machine.autocast():
            loss = module.loss(module(images), labels)
        loss.backward()
        optimizer.step()
        seen += len(images) * (step >= WARM_UP)
        if seen and time.perf_counter() - began > CALIBRATION_S:
            break
    return (time.perf_counter() - began) / seen, _inference(module, data.test, machine)


def _inference(module: Any, test: Images, machine: Machine) -> float:
    images = test.images[:512]
    predictions(module, images, machine)
    began = time.perf_counter()
    predictions(module, images, machine)
    return (time.perf_counter() - began) / len(images)


def _count(
    work: Work, cell: Cell, data: Dataset, missing: list[str], speed: tuple[float, float],
    size: tuple[int, int], shared: set[str], machine: Machine,
) -> None:  # fmt: skip
    sizes = class_sizes(data.train.labels, len(data.classes))
    poisoned = count(cell.plan, sizes)
    added = poisoned + cover_count(cell.plan, sizes)
    n_train = len(data.train) + (added if cell.plan.inject == "append" else 0)
    n_test = len(data.test) + len(asr_test_set(data.test.labels, cell.plan))
    # Every measurement is either in the list or lies behind the stage that ends it.
    passed = n_test * missing.count(MEASURE)
    beyond = [stage for stage in missing if stage != MEASURE]
    if not beyond:
        work.seconds += passed * speed[1]
        return
    stage = ORDER.index(beyond[0])
    network = [data.train.digest, cell.seed, cell.config["model"], cell.recipe.decides()]
    trainings = int(cell.retrain and not isinstance(cell.defense, Repair))
    if trainings and _leaves_clean(cell, poisoned, added):
        again = ["clean again", cell.same_seed, *network]
        trainings = int(_once(shared, again) and not _clean_is_there(cell, data, machine))
    passed += n_test * int(cell.retrain)
    attacked = [cell.attack, *network] if added else ["clean", *network]
    if stage <= ORDER.index("train") and _once(shared, attacked):
        trainings += 1
        passed += n_test
    own = stage <= ORDER.index("poison") and cell.trigger.uses_surrogate
    if own and _once(shared, ["surrogate", *network]):
        trainings += 1
    looked = ["features", attacked, cell.protocol["layer"]]
    if stage <= ORDER.index("extract") and _once(shared, looked):
        passed += n_train
        work.bytes += n_train * size[1]
    repaired = int(cell.retrain and isinstance(cell.defense, Repair))
    work.bytes += (trainings + repaired) * size[0]
    work.trainings += trainings
    work.seconds += trainings * n_train * cell.recipe.epochs * speed[0] + passed * speed[1]


def _leaves_clean(cell: Cell, poisoned: int, added: int) -> bool:
    """Whether the clean set is known to be what the defense leaves of the training set, whatever
    the attack was: all appended poison removed, or everything put back, or nothing to remove."""
    defense = cell.defense
    if isinstance(defense, TruthControl):
        appended = cell.plan.inject == "append" and added == poisoned
        return defense.restores or appended or added == 0
    idle = isinstance(defense, Keep) or (isinstance(defense, Filter) and "epsilon" in cell.told)
    return added == 0 and idle


def _once(shared: set[str], what: list[Any]) -> bool:
    key = canonical(what)
    new = key not in shared
    shared.add(key)
    return new


def describe(work: Work, side_by_side: int) -> str:
    """The cells, what is left of each, and the whole, in lines for a terminal; with a warning
    where the disk is too small for the networks and features."""
    width = max(len(cell.id) for cell, _ in work.cells)
    lines = [f"{cell.id:{width}}  {state}" for cell, state in work.cells]
    done = sum(state == "done" for _, state in work.cells)
    takes, known = f"about {duration(work.seconds)}", "from a calibration on this machine"
    if side_by_side > 1:
        together = duration(work.seconds / side_by_side)
        takes = f"about {together} with {side_by_side} cells side by side"
        known = (
            f"{duration(work.seconds)} of one cell after the other; {known}, which does not know"
            " how cells slow each other down"
        )
    cells, trainings = many(len(work.cells), "cell"), many(work.trainings, "training")
    lines.append(f"{cells}, {done} done; {trainings} to do: {takes} ({known})")
    if work.bytes:
        root = Path(work.cells[0][0].config["store"]["root"])
        lines.append(_disk(work.bytes, root, shutil.disk_usage(nearest(root)).free))
    return "\n".join(lines)


def _disk(needed: int, root: Path, free: int) -> str:
    said = f"networks and features take {size_words(needed)} in {root}"
    if needed < free:
        return f"{said}, where {size_words(free)} are free"
    return (
        f"warning: {said}, where only {size_words(free)} are free: name a larger disk"
        " (store.root=PATH), or another layer (penultimate features are the smallest)"
    )
