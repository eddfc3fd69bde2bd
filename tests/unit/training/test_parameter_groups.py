"""Parameter groups of AdamW: which parameters decay, and each layer's learning rate."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import nn
from torchvision import models

from backdoor_lab.training.models import build_model
from backdoor_lab.training.parameter_groups import layers_of, parameter_groups
from backdoor_lab.training.recipe import optimizer_of
from tests.helpers.cells import recipe


def settings(net: nn.Module, layer_decay: float = 0.5) -> dict[str, tuple[float, float]]:
    """The learning rate and weight decay of each trainable parameter, for lr=1."""
    groups = parameter_groups(net, lr=1.0, weight_decay=0.05, layer_decay=layer_decay)
    names = {id(value): name for name, value in net.named_parameters()}
    found = [(names[id(p)], (g["lr"], g["weight_decay"])) for g in groups for p in g["params"]]
    assert len(found) == len(dict(found))
    return dict(found)


def vision_transformer() -> nn.Module:
    with torch.device("meta"):
        return models.VisionTransformer(16, 8, 3, 1, 8, 8, num_classes=2)


def first_of_each_layer(net: nn.Module) -> list[str]:
    layers = layers_of(net)
    return [next(k for k in layers if layers[k] == i) for i in range(max(layers.values()) + 1)]


def test_a_transformer_has_the_learning_rates_of_mae() -> None:
    """Embeddings are layer 0, block i is layer i + 1, and everything after the blocks is the last
    layer (util/lr_decay.py of facebookresearch/mae)."""
    found = settings(vision_transformer())
    rates = {name: rate for name, (rate, _) in found.items()}
    assert rates.pop("class_token") == rates.pop("encoder.pos_embedding") == 0.5**4
    assert rates.pop("conv_proj.weight") == rates.pop("conv_proj.bias") == 0.5**4
    for block in range(3):
        inside = [n for n in rates if n.startswith(f"encoder.layers.encoder_layer_{block}.")]
        assert {rates.pop(name) for name in inside} == {0.5 ** (3 - block)}
    assert rates == dict.fromkeys(
        ["encoder.ln.weight", "encoder.ln.bias", "heads.head.weight", "heads.head.bias"], 1.0
    )


def test_biases_normalization_and_embeddings_do_not_decay() -> None:
    net = vision_transformer()
    decays = {name for name, (_, decay) in settings(net).items() if decay}
    kinds = (nn.Linear, nn.Conv2d, nn.MultiheadAttention)
    weights = {
        f"{path}.{name}"
        for path, module in net.named_modules() if isinstance(module, kinds)
        for name, value in module.named_parameters(recurse=False) if value.ndim > 1
    }  # fmt: skip
    assert decays == weights
    assert {"class_token", "encoder.pos_embedding"}.isdisjoint(decays)


def test_names_from_no_weight_decay_do_not_decay() -> None:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.latent = nn.Parameter(torch.zeros(2, 2))
            self.fc = nn.Linear(2, 2)

        def no_weight_decay(self) -> set[str]:
            return {"latent"}

    found = settings(nn.ModuleDict({"inner": Inner()}), layer_decay=1)
    assert {name for name, (_, decay) in found.items() if decay} == {"inner.fc.weight"}


def test_the_layers_of_a_resnet_are_its_stages() -> None:
    net = build_model(
        {"name": "resnet18", "width": 4, "stem": "cifar"}, channels=3, classes=2, seed=0
    )
    assert first_of_each_layer(net) == [
        "conv1.weight", "layer1.0.conv1.weight", "layer2.0.conv1.weight", "layer3.0.conv1.weight",
        "layer4.0.conv1.weight", "fc.weight",
    ]  # fmt: skip
    # The normalization after the first convolution belongs to the stem.
    assert layers_of(net)["bn1.weight"] == 0
    assert settings(net)["bn1.weight"] == (0.5**5, 0)
    assert settings(net)["fc.weight"] == (1, 0.05)


def test_only_elements_with_weight_matrices_are_layers() -> None:
    """VGG lists ReLU, pooling and batch normalization next to its convolutions."""
    with torch.device("meta"):
        net = models.vgg11_bn(num_classes=2)
    layers = layers_of(net)
    assert layers["features.0.weight"] == layers["features.1.weight"] == 0
    assert layers["features.4.weight"] == 1
    assert layers["features.25.weight"] == 7
    assert {layers[f"classifier.{i}.weight"] for i in (0, 3, 6)} == {8}


def test_a_wrapped_network_has_the_same_layers() -> None:
    net = build_model({"name": "airbench", "width": 2, "stem": None}, channels=3, classes=2, seed=0)
    wrapped = nn.Sequential(OrderedDict(outer=nn.Sequential(OrderedDict(net=net))))
    assert layers_of(wrapped) == {f"outer.net.{k}": layer for k, layer in layers_of(net).items()}
    assert max(layers_of(net).values()) == 4


def test_blocks_that_occur_several_times_are_not_numbered_blocks() -> None:
    def stage() -> nn.Module:
        return nn.ModuleDict({"layers": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))})

    net = nn.ModuleDict({"stage1": stage(), "stage2": stage(), "head": nn.Linear(2, 2)})
    assert first_of_each_layer(net) == [
        "stage1.layers.0.weight", "stage2.layers.0.weight", "head.weight"
    ]  # fmt: skip


def test_a_network_without_layers_has_one_learning_rate() -> None:
    assert settings(nn.Linear(2, 2)) == {"weight": (1, 0.05), "bias": (1, 0)}


def test_frozen_parameters_are_in_no_group() -> None:
    net = build_model({"name": "airbench", "width": 2, "stem": None}, channels=3, classes=2, seed=0)
    trained = {name for name, value in net.named_parameters() if value.requires_grad}
    assert settings(net).keys() == trained
    assert "whiten.weight" not in trained


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
def test_transformers_of_timm_have_the_groups_of_timm(name: str) -> None:
    """Except the last normalization, which belongs to the last layer, as in MAE."""
    timm = pytest.importorskip("timm")
    optim = pytest.importorskip("timm.optim")
    with torch.device("meta"):
        net = timm.create_model(name)
    groups: list[dict[str, Any]] = optim.param_groups_layer_decay(
        net, 0.05, net.no_weight_decay(), layer_decay=0.5
    )
    names = {id(value): name for name, value in net.named_parameters()}
    theirs = {names[id(p)]: (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}
    ours = settings(net)
    assert {k: v for k, v in ours.items() if theirs[k] != v}.keys() == {"norm.weight", "norm.bias"}
    assert ours["norm.weight"] == (1, 0)


@pytest.mark.parametrize(("device", "fused"), [("cpu", True), ("meta", None)])
def test_adamw_has_the_hyperparameters_of_the_recipe(device: str, fused: bool | None) -> None:
    asked = recipe(optimizer="adamw", lr=0.2, weight_decay=0.3)
    adamw, _ = optimizer_of(asked, nn.Linear(2, 2, device=device), 10)
    assert isinstance(adamw, torch.optim.AdamW)
    assert adamw.defaults["betas"] == (0.9, 0.999)
    assert adamw.defaults["fused"] is fused
    assert [(g["lr"], g["weight_decay"]) for g in adamw.param_groups] == [(0.2, 0.3), (0.2, 0)]
