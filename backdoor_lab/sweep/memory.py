"""Estimates how much memory a cell needs at least, and refuses cells that cannot fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from backdoor_lab.core import resources
from backdoor_lab.core.errors import ConfigError, many
from backdoor_lab.core.terminal import size_words
from backdoor_lab.core.types import Dataset
from backdoor_lab.defenses.base import SampleFilter
from backdoor_lab.defenses.networks import ModelBasedFilter
from backdoor_lab.defenses.scan import SCAn
from backdoor_lab.defenses.spectral import SpectralSignatures
from backdoor_lab.numerics.layers import AUTOENCODER, FeatureHook
from backdoor_lab.pipeline.cell import Cell
from backdoor_lab.pipeline.stages.holdout import class_sizes
from backdoor_lab.sweep.launching.parallel import Parallelism
from backdoor_lab.sweep.sizes import sizes_of
from backdoor_lab.training.autoencoder import DIMS
from backdoor_lab.training.device import ComputeDevice
from backdoor_lab.training.evaluate import chunk_size
from backdoor_lab.training.models import build_model
from backdoor_lab.training.recipe import ADAMW, Recipe

FLOAT32, INT64 = 4, 8
PROCESS_BYTES = 250_000_000
"""What Python and its libraries take in each process of a sweep, in addition to the cell."""
TRAINING, EVALUATION, FEATURES = "training", "evaluation", "features"
POISONING, FILTERING = "poisoning", "filtering"
REMEDIES = {
    POISONING: "lower ratio, dataset.limit_train or dataset.size",
    TRAINING: "lower recipe.batch_size, model.width or dataset.size",
    EVALUATION: "lower model.width or dataset.size",
    FEATURES: "choose another protocol.layer (penultimate features are the smallest), or lower"
    " dataset.limit_train",
    FILTERING: "choose another protocol.layer (penultimate features are the smallest), or lower"
    " dataset.limit_train",
}
"""What reduces the memory of each step."""


@dataclass(frozen=True)
class NetworkSizes:
    """The bytes that a network needs: `weights` (parameters and buffers), `trained` (parameters
    that are trained), `kept` (per image, what a training step keeps for the backward pass) and
    `passing` (per image, the largest input and output of a module). `features` is the number of
    features of an image."""

    weights: int
    trained: int
    kept: int
    passing: int
    features: int


@dataclass(frozen=True)
class MemoryNeed:
    """A lower bound of the memory of a cell, in bytes: for each step, what it needs in this
    machine's memory (`host`) and on a GPU (`device`, empty if the cell runs on a CPU). `mapped` is
    the size of the images, which are memory-mapped: the system can drop these pages at any time."""

    host: Mapping[str, int]
    device: Mapping[str, int]
    mapped: int

    def peak(self) -> tuple[str, int]:
        """The step that needs most of this machine's memory, and how much."""
        return max(self.host.items(), key=lambda item: item[1])

    def device_peak(self) -> tuple[str, int]:
        """The same for the GPU."""
        return max(self.device.items(), key=lambda item: item[1], default=("", 0))


def memory_need(
    cell: Cell, data: Dataset, machine: ComputeDevice, network: NetworkSizes
) -> MemoryNeed:
    """Returns a lower bound of the memory that a cell needs. Not included: what a step allocates
    temporarily within an operation, copies of the network that a repair or a filter makes, and
    whatever a plug-in allocates.

    Activations are halved where training uses bfloat16. Features count twice, because they are
    computed in parts that are then joined.
    """
    _, added, n_train = sizes_of(cell, data)
    image = data.train.images[:1].nbytes
    batch = min(cell.recipe.batch_size, n_train)
    chunk = min(chunk_size(data.train.shape), max(n_train, len(data.test)))
    update = network.weights + network.trained * (1 + _states(cell.recipe))
    passing = network.passing * chunk
    computing = {
        TRAINING: update + network.kept * batch // (2 if machine.bf16 else 1),
        EVALUATION: network.weights + passing // (2 if machine.bf16 else 1),
    }
    joined = 2 * FLOAT32 * network.features * n_train
    host = {
        POISONING: added * image,
        FEATURES: joined,
        FILTERING: _filtering(cell, data, network.features, n_train),
    }
    mapped = image * (len(data.train) + len(data.test))
    if machine.device.type == "cpu":
        host |= computing | {FEATURES: max(joined, network.weights + passing)}
        return MemoryNeed(host, {}, mapped)
    held = image * (len(data.train) + added) + 2 * INT64 * n_train
    device = {TRAINING: computing[TRAINING] + held, EVALUATION: computing[EVALUATION],
              FEATURES: joined + network.weights}  # fmt: skip
    return MemoryNeed(host, device, mapped)


def network_sizes(
    model: dict[str, Any], layer: str, shape: tuple[int, int, int], classes: int
) -> NetworkSizes:
    """Measures the `NetworkSizes` of a network on images of this `shape`, in two forward passes on
    the meta device, which allocates nothing, or else on the CPU with two images."""
    try:
        with torch.device("meta"):
            net = build_model(model, channels=shape[0], classes=classes, seed=0)
        return _measured(net, layer, torch.zeros(2, *shape, device="meta"))
    except NotImplementedError:
        net = build_model(model, channels=shape[0], classes=classes, seed=0)
        return _measured(net, layer, torch.zeros(2, *shape))


def fitted(needs: Sequence[MemoryNeed], at_once: Parallelism, share: int) -> Parallelism:
    """Returns how many of the cells with these needs run at a time on this machine: as `at_once`
    says or, if that was chosen automatically, fewer where they do not fit. Cells that run on other
    machines are not checked.

    `share` cells share a GPU. Raises ConfigError if a cell does not fit alone, or if a number of
    cells that the user set does not fit.
    """
    if not at_once.here:
        return at_once
    for need in needs:
        check_fits(need, share=share)
    free = resources.free_memory()
    largest = sorted((need.peak()[1] + PROCESS_BYTES for need in needs), reverse=True)
    side_by_side = min(at_once.cells, len(largest))
    if free is None or side_by_side < 2:
        return at_once
    fitting = max(n for n in range(1, side_by_side + 1) if n == 1 or sum(largest[:n]) <= free)
    if fitting == side_by_side:
        return at_once
    if at_once.why:
        return replace(at_once, cells=fitting)
    raise ConfigError(
        f"{side_by_side} cells at a time need at least {size_words(sum(largest[:side_by_side]))} of"
        f" memory, but {size_words(free)} are available: set hydra.launcher.n_jobs={fitting}, or"
        f" {REMEDIES[max(needs, key=lambda need: need.peak()[1]).peak()[0]]}"
    )


def check_fits(need: MemoryNeed, *, share: int = 1) -> None:
    """Raises ConfigError if even the lower bound of a cell's memory exceeds what is available: the
    free memory of this machine, or the memory of a GPU, divided among `share` cells."""
    step, size = need.peak()
    free = resources.free_memory()
    if free is not None and size > free:
        raise ConfigError(
            f"{step} needs at least {size_words(size)} of memory, but {size_words(free)} are"
            f" available: {REMEDIES[step]}"
        )
    step, size = need.device_peak()
    there = _gpu_memory() if size else 0
    if size * share > there:
        among = f", shared by {share} cells (trainer.cells_per_gpu)" if share > 1 else ""
        raise ConfigError(
            f"{step} needs at least {size_words(size)} of GPU memory, but the GPU has"
            f" {size_words(there)}{among}: {REMEDIES[step]}"
        )


def describe_memory(needs: Sequence[MemoryNeed], at_once: int) -> list[str]:
    """Lines for a dry run about the memory of its cells, of which `at_once` run at a time."""
    if not needs:
        return []
    need = max(needs, key=lambda each: each.peak()[1])
    step, size = need.peak()
    said = f"memory: at least {size_words(size)} for {step}"
    if need.device:
        there, on_gpu = need.device_peak()
        said += f", and {size_words(on_gpu)} of GPU memory for {there}"
    largest = sorted((each.peak()[1] + PROCESS_BYTES for each in needs), reverse=True)
    if at_once > 1 and len(needs) > 1:
        total = size_words(sum(largest[:at_once]))
        said += f"; {total} for {many(min(at_once, len(needs)), 'cell')} at a time"
    free = resources.free_memory()
    said += "" if free is None else f"; {size_words(free)} available"
    return [f"{said}; {size_words(need.mapped)} of images are read from the disk as needed"]


def _measured(net: nn.Module, layer: str, images: Tensor) -> NetworkSizes:
    state = [*net.parameters(), *net.buffers()]
    own = {_storage(value) for value in state}
    kept: dict[int, Tensor] = {}
    passing = [0]

    def keep(value: Tensor) -> Tensor:
        # The tensor is kept so that its storage, which identifies it, is not used again.
        kept.setdefault(_storage(value), value)
        return value

    def measure(module: nn.Module, given: Any, result: Any) -> None:
        alive = {_storage(value): _size(value) for value in _tensors((given, result))}
        passing.append(sum(alive.values()))

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value)
    with torch.random.fork_rng(devices=[]):
        with torch.enable_grad(), hooks:
            outputs = net.train()(images)
        leaves = [module for module in net.modules() if not any(True for _ in module.children())]
        handles = [module.register_forward_hook(measure) for module in leaves]
        with torch.no_grad():
            features = _features(net.eval(), layer, images)
        for handle in handles:
            handle.remove()
    del outputs
    return NetworkSizes(
        sum(value.nbytes for value in state),
        sum(value.nbytes for value in net.parameters() if value.requires_grad),
        sum(_size(value) for key, value in kept.items() if key not in own) // len(images),
        max(passing) // len(images),
        features,
    )


def _features(net: nn.Module, layer: str, images: Tensor) -> int:
    if layer == AUTOENCODER:
        net(images)
        return DIMS
    with FeatureHook(net, layer) as tap:
        net(images)
        return int(tap.values.shape[1])


def _storage(value: Tensor) -> int:
    return int(value.untyped_storage()._cdata)


def _size(value: Tensor) -> int:
    return int(value.untyped_storage().nbytes())


def _tensors(values: Any) -> Iterator[Tensor]:
    """Yields the tensors in nested sequences."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (tuple, list)):
        for each in values:
            yield from _tensors(each)


def _states(recipe: Recipe) -> int:
    """How many numbers the optimizer keeps for each parameter."""
    return 2 if recipe.optimizer == ADAMW else int(recipe.momentum > 0)


def _filtering(cell: Cell, data: Dataset, d: int, n_train: int) -> int:
    """What scoring a class needs in addition to all features, as far as it is documented."""
    defense = cell.defense
    if isinstance(defense, SCAn):
        # All features in float64, or two covariances and the eigenvectors of one.
        return max(8 * n_train * d, 3 * 8 * d**2)
    if not isinstance(defense, SampleFilter) or isinstance(defense, ModelBasedFilter):
        return 0
    sizes = class_sizes(data.train.labels, len(data.classes))
    only_target = defense.scope == "target"
    rows = sizes[cell.classes.index(cell.target)] if only_target else max(sizes)
    gram = min(rows, d) ** 2 if isinstance(defense, SpectralSignatures) else 0
    return FLOAT32 * (rows * d + gram)


def _gpu_memory() -> int:
    """The memory of the largest GPU, in bytes."""
    count = torch.cuda.device_count()
    return max(torch.cuda.get_device_properties(i).total_memory for i in range(count))
