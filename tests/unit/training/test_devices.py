"""The GPU code path without a GPU: no operation mixes devices. A tensor sent to `cuda` is computed
on the CPU here but reports the device `cuda:0`. An operation on tensors or generators of different
devices raises an error, as on a GPU. Only tests on a real GPU cover kernels, speed, memory,
bfloat16, checkpoints, and how Lightning finds and frees the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from pydoc import locate
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import ListConfig, OmegaConf
from pytorch_lightning.accelerators import CPUAccelerator
from pytorch_lightning.strategies import SingleDeviceStrategy
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from backdoor_lab.attacks.base import AttackContext, Trigger
from backdoor_lab.core.instantiate import build
from backdoor_lab.core.store import Store
from backdoor_lab.core.types import LabeledImages, TrainingSet
from backdoor_lab.data.cache import open_dataset
from backdoor_lab.defenses.networks import ModelBasedFilter, ModelRepair
from backdoor_lab.pipeline.cell_pipeline import CellPipeline
from backdoor_lab.pipeline.parts import source_of
from backdoor_lab.pipeline.progress import Progress
from backdoor_lab.sweep import calibrate
from backdoor_lab.training import memory_format
from backdoor_lab.training.data_loader import BatchLoader
from backdoor_lab.training.evaluate import extract, predictions
from backdoor_lab.training.train import fit, new_classifier
from tests.helpers.cells import BRIEF_STEPS, CPU, cell_of, job, toy_set
from tests.helpers.contexts import linear

CONF = Path(__file__).resolve().parents[3] / "conf"
GPU, NAMES, MACHINE = (
    torch.device("cuda", 0),
    ("cuda", "lazy"),
    replace(CPU, device=torch.device("cuda", 0)),
)
GENERATOR, TRAINER = torch.Generator, pl.Trainer
OF_GPU: dict[int, torch.Generator] = {}
aten = torch.ops.aten
MOVES = {aten._to_copy, aten.to, aten.copy_, aten._has_compatible_shallow_copy_type}
INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}


class OnGpu(Tensor):
    """A tensor on the CPU that Python and PyTorch's operations take for a tensor on the GPU."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> OnGpu:
        # Autograd sees the device `lazy`, since for a GPU it would call the CUDA driver.
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, inner.stride(), inner.storage_offset(), dtype=inner.dtype,
            device="lazy:0",
        )  # fmt: skip
        made.inner = inner
        return made

    device = property(lambda self: GPU)
    is_cuda = property(lambda self: True)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


class Pretended(TorchDispatchMode):
    """Also intercepts operations without a tensor on the GPU, which may create one."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


def computed(func: Any, args: Any, kwargs: Any) -> Any:
    """The result of an operation. Raises RuntimeError where a GPU would refuse it."""
    leaves = tree_leaves((args, kwargs))
    known = {id(each.inner): each for each in leaves if isinstance(each, OnGpu)}
    wanted = [each.type in NAMES for each in leaves if isinstance(each, torch.device)]
    on_gpu = wanted[0] if wanted else bool(known)
    if func.overloadpacket not in MOVES:
        refuse_mixed(func, args, leaves, on_gpu)
    with torch._C._DisableTorchDispatch():
        if not on_gpu and not known:
            return func(*args, **kwargs)
        found = func(*tree_map(bare, args), **tree_map(bare, kwargs))
        if func.overloadpacket in (aten._to_copy, aten.to):
            found = found.clone()  # Two devices share no memory.
    if func.overloadpacket is aten.copy_:
        return args[0]

    def named(each: Any) -> Any:
        if not on_gpu or not isinstance(each, Tensor):
            return each
        return known[id(each)] if id(each) in known else OnGpu(each)

    return tree_map(named, found)


def bare(each: Any) -> Any:
    """The CPU counterpart of an operation's argument."""
    if isinstance(each, torch.device) and each.type in NAMES:
        return torch.device("cpu")
    return each.inner if isinstance(each, OnGpu) else each


def refuse_mixed(func: Any, args: Any, leaves: list[Any], on_gpu: bool) -> None:
    """Raises RuntimeError for operands on different devices, as PyTorch does. An index may be on
    the CPU, and so may a scalar in a pointwise operation, unless it is written to."""
    indexed = func.overloadpacket in INDEXED
    if indexed and isinstance(args[0], OnGpu):
        leaves = [args[0], *args[2:3]]
    others = [each for each in leaves if isinstance(each, Tensor) and not isinstance(each, OnGpu)]
    if any(isinstance(each, OnGpu) for each in leaves):
        single = indexed or torch.Tag.pointwise in func.tags
        written = func._schema.is_mutable and any(args[0] is each for each in others)
        if written or not all(single and each.ndim == 0 for each in others):
            raise RuntimeError(f"{func}: tensors on cuda:0 and on cpu")
    for each in leaves:
        if isinstance(each, GENERATOR) and (each._cdata in OF_GPU) != on_gpu:
            raise RuntimeError(f"{func}: a generator of another device")


def generator(device: Any = "cpu") -> torch.Generator:
    """A generator on the CPU. Generators requested for the GPU are recorded."""
    made = GENERATOR()
    if torch.device(device).type == "cuda":
        OF_GPU[made._cdata] = made
    return made


class Card(CPUAccelerator):
    """Presents the simulated GPU to Lightning."""

    def setup_device(self, device: torch.device) -> None:
        assert device == GPU


def trainer(*, accelerator: str, devices: Any, **said: Any) -> pl.Trainer:
    """A Trainer, on the simulated GPU if a GPU is requested."""
    if accelerator == "cpu":
        return TRAINER(accelerator="cpu", devices=devices, **said)
    assert (accelerator, devices) == ("gpu", [0])
    return TRAINER(accelerator=Card(), strategy=SingleDeviceStrategy(GPU), **said)


@pytest.fixture(autouse=True)
def _a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # Tensors on the simulated GPU are computed by oneDNN, and these networks are narrow.
    monkeypatch.setattr(memory_format, "_uses_onednn", lambda device: True)
    monkeypatch.setattr(torch, "Generator", generator)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "pretended")
    # A module swaps in the moved tensors: a pointer to their memory would be invalid.
    monkeypatch.setattr(torch.__future__, "_swap_module_params_on_conversion", True)
    monkeypatch.setattr(pl, "Trainer", trainer)
    # FakeTensorMode keeps torch from initializing CUDA. Operations reach Pretended first.
    with FakeTensorMode(), Pretended():
        yield
    OF_GPU.clear()


def stamped(trigger: Callable[[Tensor], Tensor], plain: TrainingSet | None = None) -> TrainingSet:
    """The training set `plain`, by default the toy set, and copies of eight of its images that get
    the trigger after augmentation."""
    plain = toy_set() if plain is None else plain
    index = torch.cat([plain.index, len(plain) + torch.arange(8)])
    labels = torch.cat([plain.labels, torch.zeros(8).long()])
    return replace(plain, rows=plain.base[:8], index=index, labels=labels, late_trigger=trigger)


def batches(
    trigger: Callable[[Tensor], Tensor], device: torch.device, plain: TrainingSet | None = None
) -> list[tuple[Tensor, ...]]:
    asked = job(batch_size=16, crop_padding=1, flip=True, cutout=2).recipe
    return list(BatchLoader(stamped(trigger, plain), asked, seed=0, device=device))


MIXED: dict[str, Callable[[], object]] = {
    "two tensors": lambda: torch.zeros(3, device=GPU) + torch.zeros(3),
    "a list": lambda: torch.cat([torch.zeros(3), torch.zeros(3, device=GPU)]),
    "a tensor written to": lambda: torch.zeros(()).add_(torch.zeros((), device=GPU)),
    "an indexed tensor": lambda: torch.zeros(3)[torch.zeros(2, dtype=torch.long, device=GPU)],
    "a mask": lambda: torch.zeros(3, device=GPU).masked_fill(torch.ones(3) > 0, 1.0),
    "a module": lambda: torch.nn.Linear(3, 2).to(GPU)(torch.zeros(1, 3)),
    "a CPU generator for a GPU tensor": lambda: torch.rand(
        3, device=GPU, generator=torch.Generator()
    ),
    "a GPU generator for a CPU tensor": lambda: torch.randperm(3, generator=torch.Generator(GPU)),
    "an array": lambda: torch.zeros(3, device=GPU).numpy(),
    "a trigger": lambda: batches(lambda images: images + torch.ones(3, 8, 8).byte(), GPU),
}


@pytest.mark.parametrize("what", MIXED)
def test_operations_that_fail_on_a_gpu_also_fail_on_the_simulated_gpu(what: str) -> None:
    with pytest.raises((RuntimeError, TypeError), match="on cuda:0 and on cpu|generator|subclass"):
        MIXED[what]()


class Places(pl.Callback):
    """Records the devices of images, labels and weights in each step."""

    def __init__(self) -> None:
        self.seen: set[torch.device] = set()

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, step: int
    ) -> None:
        self.seen |= {each.device for each in [*batch, *module.parameters(), *module.buffers()]}


@pytest.mark.parametrize(
    ("channels_last", "changes"),
    [(True, {"crop_padding": 1, "flip": True, "schedule": "onecycle", "warmup": 0.2,
            "nesterov": True}),
     (False, {"mixup": 0.4, "cutmix": 1.0, "cutout": 2, "weight_decay": 0.01})],
    ids=["augmented", "mixed"],
)  # fmt: skip
def test_training_on_the_gpu_gives_the_same_losses_as_training_on_the_cpu(
    channels_last: bool, changes: dict[str, Any]
) -> None:
    """Images, labels and weights are on the GPU during training. The weights are on the CPU
    afterwards."""
    asked, places = job(label_smoothing=0.1, batch_size=16, **changes), Places()
    machine = replace(MACHINE, channels_last=channels_last)
    module = fit(asked, machine, callbacks=[places])
    assert places.seen == {GPU}
    assert not [each for each in module.state_dict().values() if isinstance(each, OnGpu)]
    here = fit(asked, replace(machine, device=CPU.device))
    assert module.history == pytest.approx(here.history, rel=1e-3)


@pytest.mark.parametrize("path", sorted((CONF / "trigger").glob("*.yaml")), ids=lambda p: p.stem)
def test_triggers_on_the_gpu_equal_those_on_the_cpu(path: Path) -> None:
    """A trigger is prepared on the GPU and applied there to poison, covers and batches."""
    options: Any = OmegaConf.to_container(OmegaConf.load(path))
    brief = {"steps": 2} if "steps" in options else {}
    trigger = build("trigger", options | brief | BRIEF_STEPS.get(path.stem, {}), Trigger)
    toys, source = toy_set(), 0 if trigger.source_specific else None
    data = replace(toys, base=toys.base.repeat(1, 1, 2, 2))  # Adaptive-Patch refuses 8x8 images.
    images = LabeledImages(data.base, data.labels, data.classes)
    surrogate: nn.Module = new_classifier(job(), MACHINE)
    if path.stem == "low_frequency_authors":
        # DeepFool needs a network whose predictions the small images can change.
        surrogate = linear(data.base[0].numel(), len(data.classes))
    work = AttackContext(images, 1, source, 0, lambda: surrogate.to(GPU).eval(), GPU)
    trigger.state = trigger.prepare(work)
    assert not [each for each in trigger.state.values() if isinstance(each, OnGpu)]
    for made in (trigger.poisoned, trigger.make_covers):
        assert made(data.base[1:9:2], data.labels[1:9:2], work).device == CPU.device
    there, here = (batches(trigger, device, data) for device in (GPU, CPU.device))
    for one, other in zip(there, here, strict=True):
        assert {each.device for each in one} == {GPU}
        assert all(torch.equal(a.cpu(), b) for a, b in zip(one, other, strict=True))


def test_predictions_and_features_are_on_the_cpu() -> None:
    training, module = stamped(lambda images: 255 - images), new_classifier(job(), MACHINE)
    predicted = predictions(module, training.base, MACHINE)
    values = extract(module, training, "penultimate", MACHINE).values
    assert module.device == GPU
    assert {type(predicted), type(values)} == {Tensor}
    assert torch.equal(predicted, predictions(module, training.base, CPU))
    assert torch.allclose(values, extract(module, training, "penultimate", CPU).values)


def test_a_network_can_be_trained_after_prediction() -> None:
    training, module = toy_set(), new_classifier(job(), MACHINE)
    predictions(module, training.base, MACHINE)
    module(training.base.to(GPU)).sum().backward()
    assert all(each.grad is not None for each in module.parameters())


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for all cells, so that they share the attacked network."""
    return tmp_path_factory.mktemp("store")


SHORT = {
    "steps": 2, "shares": [0.5], "epochs": 1, "training_epochs": 1, "unlearning_epochs": 1,
    "threshold": 0,
}  # fmt: skip


def cells() -> Iterator[list[str]]:
    """Each defense that uses networks, with short trainings, and a filter on features of either
    kind."""
    for path in sorted((CONF / "defense").glob("*.yaml")):
        options = OmegaConf.load(path)
        kind: Any = locate(options._target_)
        if issubclass(kind, (ModelBasedFilter, ModelRepair)):
            short = [f"defense.{key}={value}" for key, value in SHORT.items() if key in options]
            short += [f"defense.{key}={value[0]}" for key, value in options.items()
                      if isinstance(value, ListConfig) and key not in SHORT]  # fmt: skip
            retrain = f"retrain={str(issubclass(kind, ModelRepair)).lower()}"
            yield [f"defense={path.stem}", "protocol.clean_holdout=20", retrain, *short]
    yield ["defense=spectral"]
    yield ["protocol.layer=autoencoder", "retrain=false"]


@pytest.mark.parametrize("asked", cells(), ids=lambda each: each[0])
def test_a_cell_runs_on_the_gpu_from_the_attack_to_the_record(
    asked: list[str], root: Path, tmp_path: Path
) -> None:
    cell = cell_of(
        root, *asked, "dataset.per_class_train=8", "protocol.apply_trigger=after_augmentation"
    )
    chain = CellPipeline(
        cell, Store(root), MACHINE, Progress(tmp_path, "", "none"), checkpoint=False
    )
    assert chain.run()["status"] == "done"


def test_an_estimate_is_calibrated_on_the_gpu(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "SHORTEST", 0.0)
    monkeypatch.setattr(calibrate, "PROCESSOR_TIME", 0.0)
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    cell = cell_of(root)
    bench = calibrate.Bench(cell, open_dataset(source_of(cell.config), Store(root)), MACHINE)
    bench.warm_up()
    assert min(sample.seconds for sample in bench.measure()) > 0
    assert waited
