"""Wide residual networks: the formula of the authors' code, and the names of backdoor-toolbox."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backdoor_lab.core.errors import ConfigError
from backdoor_lab.numerics.layers import FeatureHook, head
from backdoor_lab.pipeline.attacked import recognized
from backdoor_lab.sweep.trial import try_network
from backdoor_lab.training.models import build_model, check_model
from tests.helpers.cells import run_here

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def spec(name: str = "wideresnet10_1", **changes: Any) -> dict[str, Any]:
    return {"name": name, "width": None, "stem": None} | changes


def build(name: str = "wideresnet10_1", **changes: Any) -> nn.Module:
    return build_model(spec(name), **{"channels": 3, "classes": 10, "seed": 0} | changes)


def by_hand(weights: dict[str, Tensor], images: Tensor, units: int) -> Tensor:
    """The function of the authors' code (pytorch/resnet.py), with the weights alone."""

    def activated(x: Tensor, norm: str) -> Tensor:
        mean, var = weights[f"{norm}.running_mean"], weights[f"{norm}.running_var"]
        return F.batch_norm(x, mean, var, weights[f"{norm}.weight"], weights[f"{norm}.bias"]).relu()

    x = F.conv2d(images, weights["conv1.weight"], padding=1)
    for block, unit in ((block, unit) for block in (1, 2, 3) for unit in range(units)):
        name, stride = f"block{block}.layer.{unit}", 2 if block > 1 and unit == 0 else 1
        o1 = activated(x, f"{name}.bn1")
        y = F.conv2d(o1, weights[f"{name}.conv1.weight"], stride=stride, padding=1)
        z = F.conv2d(activated(y, f"{name}.bn2"), weights[f"{name}.conv2.weight"], padding=1)
        projection = weights.get(f"{name}.convShortcut.weight")
        x = z + (x if projection is None else F.conv2d(o1, projection, stride=stride))
    pooled = F.avg_pool2d(activated(x, "bn1"), 8).flatten(1)
    return F.linear(pooled, weights["fc.weight"], weights["fc.bias"])


@pytest.mark.parametrize(("name", "units"), [("wideresnet10_1", 1), ("wideresnet16_2", 2)])
def test_the_outputs_are_those_of_the_authors_function(name: str, units: int) -> None:
    net = build(name)
    generator = torch.Generator().manual_seed(1)
    for key, value in net.state_dict().items():
        if "running" in key:
            value.copy_(0.5 + torch.rand(value.shape, generator=generator))
    images = torch.randn(2, 3, 32, 32, generator=generator)
    with torch.no_grad():
        expected = by_hand(dict(net.state_dict()), images, units)
        torch.testing.assert_close(net.eval()(images), expected, rtol=1e-4, atol=1e-4)


def test_the_weights_have_the_names_and_numbers_of_backdoor_toolbox() -> None:
    norms = {f"{n}.{what}" for n in ("bn1", "bn2") for what in ("weight", "bias", *STATISTICS)}
    unit = norms | {"conv1.weight", "conv2.weight"}
    expected = {"conv1.weight", "fc.weight", "fc.bias", *(n for n in norms if n[2] == "1")}
    for block, inner in ((block, inner) for block in (1, 2, 3) for inner in (0, 1)):
        more = {"convShortcut.weight"} if inner == 0 else set()
        expected |= {f"block{block}.layer.{inner}.{name}" for name in unit | more}
    with torch.device("meta"):
        nets = {name: build(name) for name in ("wideresnet16_4", "wideresnet28_10")}
    assert nets["wideresnet16_4"].state_dict().keys() == expected
    sizes = [sum(each.numel() for each in net.parameters()) for net in nets.values()]
    # The paper gives 2.7M and 36.5M.
    assert sizes == [2_748_890, 36_479_194]


def test_initial_weights_have_the_deviation_of_the_authors_and_depend_on_the_seed() -> None:
    net = build("wideresnet16_4")
    weight = net.get_submodule("block3.layer.1.conv1").weight
    assert isinstance(weight, Tensor)
    assert float(weight.detach().std()) == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.01)
    assert not head(net).bias.any()
    assert torch.equal(head(net).weight, head(build("wideresnet16_4")).weight)
    assert not torch.equal(head(net).weight, head(build("wideresnet16_4", seed=1)).weight)


@pytest.mark.parametrize(
    ("layer", "features"),
    [("penultimate", 64), ("block3:pool", 64), ("block2", 32 * 36), ("autoencoder", 64),
     ("last_stage_input", 32 * 36)],
)  # fmt: skip
def test_every_layer_name_selects_features_of_gray_images(layer: str, features: int) -> None:
    _, found = try_network(spec(), layer, (1, 12, 12), 7)
    assert found == features


def test_penultimate_features_are_activated_and_averaged() -> None:
    net = build().eval()
    with torch.no_grad(), FeatureHook(net, "penultimate") as tap, FeatureHook(net, "bn1") as last:
        net(torch.rand(2, 3, 12, 12))
    torch.testing.assert_close(last.values.relu().unflatten(1, (64, 9)).mean(dim=2), tap.values)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (spec("wideresnet18_4"), "depth of a wide ResNet must be 10, 16, 22, 28"),
        (spec("wideresnet4_1"), "depth of a wide ResNet must be 10, 16, 22, 28"),
        (spec("wideresnet16"), "wideresnet<6k.4>_<widening factor>, such as wideresnet16_4"),
        (spec("wideresnet16_0"), "widening factor at least 1"),
        (spec(width=64), "`model.name=wideresnet10_1` has no `width` or `stem`"),
        (spec(stem="cifar"), "`model.name=wideresnet10_1` has no `width` or `stem`"),
        (spec("widresnet16_4"), "'widresnet16_4' is not known.*wideresnet16_4"),
    ],
)
def test_names_and_options_of_other_networks_are_refused(
    config: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_model(config)


def test_published_weights_are_recognized_by_their_shapes() -> None:
    net = build("wideresnet16_2", channels=1, classes=43)
    shapes = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    found = recognized(shapes)
    assert found is not None
    assert (found.model, found.channels, found.classes) == (spec("wideresnet16_2"), 1, 43)


def test_a_cell_with_the_network_of_16_layers_runs(tmp_path: Path) -> None:
    record = run_here(
        tmp_path / "store", tmp_path / "cell", "model=wideresnet16_4", "model.width=null",
        "dataset.per_class_train=6",
    )  # fmt: skip
    assert record["status"] == "done"
    assert record["choices"]["model"] == "wideresnet16_4"
    assert 0 <= record["nat2"] <= 1
