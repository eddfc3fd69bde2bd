"""The last linear layer and the layer hook are the same for training and defenses."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from torch import nn

import backdoor_lab
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.defenses import networks
from backdoor_lab.numerics.layers import FeatureHook, head, last_stage, layer_of
from backdoor_lab.training.evaluate import extract
from backdoor_lab.training.models import build_model
from backdoor_lab.training.train import new_classifier
from tests.helpers.cells import CPU, job, toy_set


def test_a_defense_gets_the_extracted_penultimate_features() -> None:
    training = toy_set()
    module = new_classifier(job(training), CPU).eval()
    seen = networks.features(module, lambda a, b: training.shown(torch.arange(a, b)), len(training))
    assert seen.dtype == torch.float64
    assert not seen.requires_grad
    assert torch.equal(seen.float(), extract(module, training, "penultimate", CPU).values)
    assert not any(each._forward_pre_hooks for each in module.modules())


def test_the_head_of_a_network_is_its_last_linear_layer() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.Sequential(nn.ReLU(), nn.Linear(3, 2)), nn.Tanh())
    assert head(net).out_features == 2
    with FeatureHook(net, "penultimate") as tap:
        net(torch.ones(5, 4))
    assert tap.values.shape == (5, 3)
    with pytest.raises(ConfigError, match="Tanh has no linear layer"):
        head(nn.Tanh())


def test_only_four_modules_register_forward_hooks() -> None:
    """These are `numerics.layers`; `training.unused_columns` and `sweep.memory`, whose hooks read
    only shapes; and `training.models`, whose hook resizes images before the first layer."""
    allowed = {
        "numerics/layers.py", "sweep/memory.py", "training/models.py",
        "training/unused_columns.py",
    }  # fmt: skip
    package = Path(backdoor_lab.__file__).parent
    found = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr.startswith("register_forward_")
    }
    assert found == allowed


def network(name: str, width: int | None = 4) -> nn.Module:
    stem = "cifar" if name == "resnet18" else None
    return build_model(
        {"name": name, "width": width, "stem": stem}, channels=3, classes=2, seed=0
    ).eval()


@pytest.mark.parametrize(
    ("name", "width", "expected"),
    [("resnet18", 4, "layer4"), ("airbench", 4, "group3"), ("vgg11", None, "features.18"),
     ("densenet121", None, "features.denseblock4")],
)  # fmt: skip
def test_the_last_stage_is_the_last_part_with_convolutions(
    name: str, width: int | None, expected: str
) -> None:
    net = network(name, width)
    assert last_stage(net) is dict(net.named_modules())[expected]
    assert layer_of(net, "last_stage_input") == (last_stage(net), True)


def test_a_network_without_two_convolutions_has_no_last_stage() -> None:
    """The features of the penultimate layer are used instead."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    assert last_stage(net) is None
    assert layer_of(net, "last_stage_input") == (net[2], True)


def test_the_input_of_the_last_stage_is_the_output_of_the_previous_stage() -> None:
    net, images = network("resnet18"), torch.rand(2, 3, 16, 16)
    with (
        torch.no_grad(),
        FeatureHook(net, "last_stage_input") as entering,
        FeatureHook(net, "layer4:input") as named,
        FeatureHook(net, "layer3") as before,
        FeatureHook(net, "penultimate") as last,
    ):
        net(images)
    assert torch.equal(entering.values, before.values)
    assert torch.equal(named.values, before.values)
    assert (entering.channels, before.channels, last.channels) == (16, 16, 32)
    assert entering.values.shape == (2, 16 * 4 * 4)


def test_the_recorded_input_of_an_in_place_relu_is_not_overwritten() -> None:
    net, images = network("resnet18"), torch.rand(2, 3, 16, 16)
    with (
        torch.no_grad(),
        FeatureHook(net, "layer3.1.relu:input") as before,
        FeatureHook(net, "layer3") as after,
    ):
        net(images)
    assert float(before.values.min()) < 0
    assert torch.equal(before.values.relu(), after.values)


def test_the_error_for_an_unknown_layer_names_the_option_that_set_it() -> None:
    with pytest.raises(ConfigError, match=r"`defense\.layer`.*layer9.*last_stage_input"):
        layer_of(network("resnet18"), "layer9:input", "defense.layer")


class Tokens(nn.Module):
    """Four tokens per image, the first `num_prefix_tokens` of which are class tokens."""

    def __init__(self, prefix: int | None) -> None:
        super().__init__()
        if prefix is not None:
            self.num_prefix_tokens = prefix
        self.blocks = nn.Sequential(nn.Identity(), nn.Identity())

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.blocks(tokens)
        return found


@pytest.mark.parametrize(("prefix", "expected"), [(None, 1.5), (0, 1.5), (1, 2.0), (2, 2.5)])
def test_mean_averages_the_tokens_of_the_image_only(prefix: int | None, expected: float) -> None:
    tokens = torch.arange(4.0).view(1, 4, 1).expand(2, 4, 3)
    net = Tokens(prefix)
    with FeatureHook(net, "blocks.0:mean") as tap:
        net(tokens)
    assert torch.equal(tap.values, torch.full((2, 3), expected))
    with FeatureHook(net, "blocks.0:pool") as tap:
        net(tokens)
    assert torch.equal(tap.values, torch.full((2, 3), 1.5))


def test_cls_is_the_first_token_and_is_refused_without_class_tokens() -> None:
    net = Tokens(1)
    with FeatureHook(net, "blocks.0:cls") as tap:
        net(torch.arange(4.0).view(1, 4, 1))
    assert tap.values.tolist() == [[0]]
    with pytest.raises(ConfigError, match=r"Tokens has no class token; use blocks.0:mean"):
        FeatureHook(Tokens(0), "blocks.0:cls")


def test_mean_needs_tokens() -> None:
    net = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(12, 2))
    with (
        pytest.raises(
            ConfigError, match=r"needs tokens \(n, tokens, d\), got shape \(n, 3, 2, 2\)"
        ),
        FeatureHook(net, "0:mean"),
    ):
        net(torch.zeros(1, 3, 2, 2))


@pytest.mark.parametrize(
    ("layer", "nearest"),
    [("blocks.2:cls", "blocks.[01]:cls"), ("block.1:mean", "blocks.1:mean"), ("bloks", "blocks")],
)
def test_the_nearest_layer_is_suggested_with_its_suffix(layer: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=f"{layer}' is not known. Did you mean '{nearest}'"):
        FeatureHook(Tokens(1), layer)
