"""The rule for the memory format of a network: no CPU computes wrong gradients, and wide networks
are trained as before."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._prims_common import suggest_memory_format

import backdoor_lab.training.train as fit_module
from backdoor_lab.core.store import Artifact, Store
from backdoor_lab.core.types import TrainingSet
from backdoor_lab.pipeline.cell_pipeline import CellPipeline
from backdoor_lab.pipeline.progress import Progress
from backdoor_lab.training.autoencoder import Autoencoder
from backdoor_lab.training.device import ComputeDevice
from backdoor_lab.training.evaluate import channel_stats
from backdoor_lab.training.memory_format import CHANNELS_LAST, CONTIGUOUS, memory_format_of
from backdoor_lab.training.models import build_model, classifiers
from backdoor_lab.training.train import TrainingJob, fit, new_classifier
from tests.helpers.cells import CPU, cell_of, job, run_here, toy_set, training_set

PACKAGE = Path(fit_module.__file__).resolve().parents[1]
RULE = PACKAGE / "training" / "memory_format.py"
GPU = replace(CPU, device=torch.device("cuda", 0))
FORMATS = {"channels_last", "channels_last_3d", "contiguous_format", "preserve_format"}


def network(name: str = "resnet18", width: int | None = 4, stem: str | None = "cifar") -> nn.Module:
    config = {"name": name, "width": width, "stem": stem}
    with torch.device("meta"):
        return build_model(config, channels=3, classes=10, seed=0)


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
@pytest.mark.parametrize(
    ("name", "width", "expected"),
    [("resnet18", 1, CONTIGUOUS), ("resnet18", 7, CONTIGUOUS), ("resnet34", 15, CONTIGUOUS),
     ("resnet18", 16, CHANNELS_LAST), ("resnet18", 17, CHANNELS_LAST),
     ("resnet18", 64, CHANNELS_LAST),
     # The input of their first strided shortcut has four times as many channels as the width.
     ("resnet50", 3, CONTIGUOUS), ("resnet50", 4, CHANNELS_LAST)],
)  # fmt: skip
def test_a_resnet_with_a_narrow_strided_shortcut_uses_the_contiguous_memory_format(
    name: str, width: int, stem: str, expected: str
) -> None:
    assert memory_format_of(network(name, width, stem), CPU) == expected


@pytest.mark.parametrize(
    ("layer", "expected"),
    [(nn.Conv2d(15, 64, 1, stride=2), CONTIGUOUS),
     (nn.Conv2d(15, 64, 1, stride=(1, 2)), CONTIGUOUS),
     (nn.Conv2d(64, 64, 1, stride=2, groups=8), CONTIGUOUS),
     (nn.Conv2d(64, 64, 1, stride=2, groups=64), CONTIGUOUS),
     (nn.Conv1d(4, 8, 1, stride=2), CONTIGUOUS),
     (nn.ConvTranspose2d(64, 8, 1, stride=2), CONTIGUOUS),
     (nn.ConvTranspose2d(8, 64, 1, stride=2), CHANNELS_LAST),
     (nn.Conv2d(64, 64, 1, stride=2, groups=4), CHANNELS_LAST),
     (nn.Conv2d(16, 64, 1, stride=2), CHANNELS_LAST),
     (nn.Conv2d(3, 64, 1), CHANNELS_LAST),
     (nn.Conv2d(3, 64, 3, stride=2, padding=1), CHANNELS_LAST),
     (nn.Linear(3, 3), CHANNELS_LAST)],
    ids=lambda each: str(each),
)  # fmt: skip
def test_a_narrow_strided_pointwise_convolution_makes_the_network_contiguous(
    layer: nn.Module, expected: str
) -> None:
    net = nn.Sequential(nn.Conv2d(64, 64, 3), nn.Sequential(nn.ReLU(), layer))
    assert memory_format_of(net, CPU) == expected


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "mobilenet_v3_small", "resnext50_32x4d",
                                  "vgg11_bn", "densenet121", "squeezenet1_1"])  # fmt: skip
def test_torchvision_networks_stay_channels_last(name: str) -> None:
    assert name in classifiers()
    width = (64, "cifar") if name.startswith("resnext") else (None, None)
    assert memory_format_of(network(name, *width), CPU) == CHANNELS_LAST


@pytest.mark.parametrize("width", [4, 64])
@pytest.mark.parametrize("machine", [CPU, GPU], ids=["cpu", "gpu"])
def test_memory_is_contiguous_on_every_machine_for_which_channels_last_is_disabled(
    machine: ComputeDevice, width: int
) -> None:
    assert memory_format_of(network(width=width), replace(machine, channels_last=False)) == (
        CONTIGUOUS
    )


@pytest.mark.parametrize("width", [1, 4, 15, 64])
def test_networks_on_a_gpu_use_the_channels_last_memory_format(width: int) -> None:
    assert memory_format_of(network(width=width), GPU) == CHANNELS_LAST


@pytest.mark.parametrize("bf16", [False, True])
def test_the_memory_format_does_not_depend_on_the_precision(bf16: bool) -> None:
    """Defenses train a network in float32 even if it was trained in bfloat16."""
    machine = replace(CPU, bf16=bf16)
    assert memory_format_of(network(width=4), machine) == CONTIGUOUS
    assert memory_format_of(network(width=16), machine) == CHANNELS_LAST


def names_a_format(node: ast.AST) -> bool:
    """Whether a syntax tree node names or sets a memory format of torch."""
    if isinstance(node, ast.Attribute):
        # `channels_last` alone is an option of the trainer.
        of_torch = ast.unparse(node.value) == "torch"
        return (of_torch and node.attr in FORMATS) or node.attr in ("suggest_memory_format",)
    if isinstance(node, ast.ImportFrom):
        return node.module == "torch" and any(each.name in FORMATS for each in node.names)
    if isinstance(node, ast.Call):
        return ast.unparse(node.func).endswith((".to", ".contiguous", ".clone")) and any(
            each.arg == "memory_format" for each in node.keywords
        )
    return False


def test_only_one_module_mentions_a_memory_format() -> None:
    found = [
        f"{path.relative_to(PACKAGE)}:{getattr(node, 'lineno', '')}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if path != RULE and names_a_format(node)
    ]
    assert found == []
    assert any(map(names_a_format, ast.walk(ast.parse(RULE.read_text()))))


def watched(module: nn.Module) -> set[torch.memory_format]:
    """A set to which each forward pass adds the memory formats of the inputs, weights and outputs
    of all convolutions."""
    seen: set[torch.memory_format] = set()

    def look(conv: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.update(suggest_memory_format(each) for each in (*inputs, conv.weight, output))

    for each in module.modules():
        if isinstance(each, nn.Conv2d):
            each.register_forward_hook(look)
    return seen


def lying(shape: tuple[int, ...], *, channels_last: bool) -> Tensor:
    """Random images with the strides of one format, even if these strides fit both formats."""
    n, channels, height, width = shape
    if not channels_last:
        return torch.randint(0, 256, shape, dtype=torch.uint8)
    images = torch.randint(0, 256, (n, height, width, channels), dtype=torch.uint8)
    return images.permute(0, 3, 1, 2)


@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 1, 8, 8), (2, 3, 1, 1), (2, 1, 1, 1),
                                   (1, 1, 8, 8), (1, 3, 8, 8)])  # fmt: skip
def test_narrow_convolutions_never_receive_channels_last_images(
    shape: tuple[int, ...], channels_last: bool, kind: torch.dtype
) -> None:
    """With one channel or one pixel, the strides match both formats, so `contiguous` does not
    change them. Without a correction, such images would make every convolution use the
    channels-last format."""
    images = lying(shape, channels_last=channels_last)
    training = training_set(images, torch.zeros(len(images), dtype=torch.int64))
    asked = replace(job(), training=training, mean=torch.ones(shape[1]), std=torch.ones(shape[1]))
    for machine in (CPU, replace(CPU, channels_last=False)):
        module = new_classifier(asked, machine).eval()
        seen = watched(module)
        module(images.to(kind))
        assert seen == {torch.contiguous_format}


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 8, 8)])
def test_an_autoencoder_is_contiguous_even_for_channels_last_images(
    shape: tuple[int, int, int],
) -> None:
    net = Autoencoder(shape, 0)
    seen = watched(net)
    net(lying((2, *shape), channels_last=True))
    assert seen == {torch.contiguous_format}


def wide(training: TrainingSet, width: int) -> TrainingJob:
    mean, std = channel_stats(training.base)
    model = {"name": "resnet18", "width": width, "stem": "cifar"}
    return replace(
        job(training, crop_padding=1, flip=True, batch_size=16), model=model, mean=mean, std=std
    )


@pytest.mark.parametrize("width", [16, 17])
@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bfloat16"])
def test_wide_networks_are_trained_exactly_as_in_channels_last_format(
    bf16: bool, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only narrow networks are trained in contiguous format."""
    asked, machine = wide(toy_set(32), width), replace(CPU, bf16=bf16)
    ours = fit(asked, machine)
    monkeypatch.setattr(fit_module, "memory_format_of", lambda net, machine: CHANNELS_LAST)
    before = fit(asked, machine)
    assert ours.memory_format == CHANNELS_LAST
    assert ours.history == before.history
    theirs = before.net.state_dict()
    for name, value in ours.net.state_dict().items():
        assert torch.equal(value, theirs[name]), name
        assert value.stride() == theirs[name].stride(), name


def test_the_two_memory_formats_give_different_weights() -> None:
    """Therefore comparing weights shows in which format a network was trained."""
    asked = wide(toy_set(32), 16)
    one, other = (
        fit(asked, replace(CPU, channels_last=each)).net.state_dict() for each in (True, False)
    )
    assert not all(torch.equal(value, other[name]) for name, value in one.items())


class Inputs(Store):
    """A store that also records the inputs of each stage."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.inputs: dict[str, dict[str, Any]] = {}

    def get(self, stage: str, inputs: dict[str, Any], make: Any) -> Artifact:
        self.inputs[stage] = inputs
        return super().get(stage, inputs, make)


@pytest.mark.parametrize(("width", "extra"), [(16, set()), (15, {"revision"})])
def test_the_inputs_of_training_stages_contain_a_revision_only_if_the_network_is_narrow(
    tmp_path: Path, width: int, extra: set[str]
) -> None:
    """A store may hold narrow networks trained with wrong gradients; the key `revision` ensures
    that these are trained again."""
    cell = cell_of(tmp_path, f"model.width={width}", "defense=none", "dataset.per_class_train=4")
    store = Inputs(tmp_path)
    CellPipeline(cell, store, CPU, Progress(tmp_path, "", "none")).run()
    plain = {"version", "training", "model", "recipe", "bf16", "seed"}
    assert set(store.inputs["train"]) == set(store.inputs["retrain"]) == plain | extra


@pytest.mark.parametrize(
    ("overrides", "stages"),
    [(["model.width=4"], {"train": CONTIGUOUS, "retrain": CONTIGUOUS}),
     (["model.width=16"], {"train": CHANNELS_LAST, "retrain": CHANNELS_LAST}),
     (["model.width=16", "trainer.channels_last=false"], {"train": CONTIGUOUS}),
     (["model.width=4", "trigger=narcissus", "trigger.steps=2", "trigger.lr=30"],
      {"surrogate": CONTIGUOUS}),
     (["model.width=4", "protocol.layer=autoencoder"], {"autoencoder": CONTIGUOUS}),
     (["model.width=4", "defense=abl"], {"filter": CONTIGUOUS}),
     (["model.width=4", "defense=fine_pruning", "protocol.clean_holdout=20"],
      {"repair": CONTIGUOUS})],
    ids=lambda each: each[-1] if isinstance(each, list) else "",
)  # fmt: skip
def test_the_record_contains_the_machine_the_memory_format_and_the_instruction_set(
    tmp_path: Path, overrides: list[str], stages: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DNNL_MAX_CPU_ISA", raising=False)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    record = run_here(tmp_path, tmp_path / "cell", "dataset.per_class_train=8", *overrides)
    assert record["status"] == "done"
    run = record["run"]
    expected = {
        "device": "cpu", "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "onednn_max_cpu_isa": "AVX2", "dnnl_max_cpu_isa": None, "threads": 1, "precision": "fp32",
    }  # fmt: skip
    assert run["compute"].items() >= expected.items()
    assert run["compute"]["processor"] in run["device"]
    for stage, found in stages.items():
        compute = run["stages"][stage]["compute"]
        assert compute == {**run["compute"], "memory_format": found}
