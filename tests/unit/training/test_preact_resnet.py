"""The pre-activation ResNet18: names, shapes and values of BackdoorBench's network.

That equal weights give equal outputs was also shown once with BackdoorBench's own module
(SCLBD/BackdoorBench@f02e353, models/preact_resnet.py): for images of 28, 32 and 64 pixels, 10 and
43 classes, in training and in evaluation mode, the outputs were bit for bit the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backdoor_lab.core.errors import ConfigError
from backdoor_lab.numerics.layers import FeatureHook, head, layer_of
from backdoor_lab.sweep.trial import try_network
from backdoor_lab.training.memory_format import CHANNELS_LAST, CONTIGUOUS, memory_format_of
from backdoor_lab.training.models import build_model, check_model
from tests.helpers.cells import CPU, run_here

PREACT = {"name": "preactresnet18", "width": 4, "stem": None}
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def build(**changes: Any) -> nn.Module:
    said = {"channels": 3, "classes": 10, "seed": 0}
    return build_model(PREACT | changes, **said)


def by_hand(weights: dict[str, Tensor], images: Tensor) -> Tensor:
    """The formula of the paper (figure 4e), written with functions and the weights alone."""

    def activated(x: Tensor, norm: str) -> Tensor:
        mean, var = weights[f"{norm}.running_mean"], weights[f"{norm}.running_var"]
        return F.batch_norm(x, mean, var, weights[f"{norm}.weight"], weights[f"{norm}.bias"]).relu()

    x = F.conv2d(images, weights["conv1.weight"], padding=1)
    for stage, block in ((stage, block) for stage in (1, 2, 3, 4) for block in (0, 1)):
        name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
        first = activated(x, f"{name}.bn1")
        projection = weights.get(f"{name}.shortcut.0.weight")
        around = x if projection is None else F.conv2d(first, projection, stride=stride)
        inner = F.conv2d(first, weights[f"{name}.conv1.weight"], stride=stride, padding=1)
        inner = activated(inner, f"{name}.bn2")
        x = around + F.conv2d(inner, weights[f"{name}.conv2.weight"], padding=1)
    return F.linear(x.mean(dim=(2, 3)), weights["linear.weight"], weights["linear.bias"])


def test_the_outputs_are_those_of_the_formula_of_the_paper() -> None:
    net = build()
    generator = torch.Generator().manual_seed(1)
    for name, value in net.state_dict().items():
        if value.is_floating_point():
            spread = torch.rand(value.shape, generator=generator)
            value.copy_(0.5 + spread if "var" in name else spread - 0.4)
    images = torch.randn(3, 3, 9, 9, generator=generator)
    with torch.no_grad():
        expected = by_hand(dict(net.state_dict()), images)
        torch.testing.assert_close(net.eval()(images), expected, rtol=1e-4, atol=1e-4)


def test_the_weights_have_the_names_of_backdoorbench() -> None:
    norms = {f"{n}.{what}" for n in ("bn1", "bn2") for what in ("weight", "bias", *STATISTICS)}
    block = norms | {"conv1.weight", "conv2.weight"}
    expected = {"conv1.weight", "linear.weight", "linear.bias"}
    for stage, inner in ((stage, inner) for stage in (1, 2, 3, 4) for inner in (0, 1)):
        more = {"shortcut.0.weight"} if stage > 1 and inner == 0 else set()
        expected |= {f"layer{stage}.{inner}.{name}" for name in block | more}
    assert build(width=64).state_dict().keys() == expected
    # The numbers of parameters of BackdoorBench's network for 10 classes.
    assert sum(each.numel() for each in build(width=64).parameters()) == 11_171_146


def test_every_width_takes_color_and_gray_images_of_any_size() -> None:
    for width, channels, size in ((1, 1, 8), (3, 3, 28), (16, 3, 32)):
        net = build_model(PREACT | {"width": width}, channels=channels, classes=7, seed=0)
        assert net(torch.rand(2, channels, size, size)).shape == (2, 7)
    same, other = build(), build_model(PREACT, channels=3, classes=10, seed=1)
    assert all(
        torch.equal(a, b) for a, b in zip(same.parameters(), build().parameters(), strict=True)
    )
    assert not torch.equal(head(same).weight, head(other).weight)


@pytest.mark.parametrize(
    ("layer", "features"),
    [("penultimate", 32), ("last_stage_input", 16 * 16), ("layer4:pool", 32), ("layer3", 256),
     ("layer4.1.conv1:input", 32 * 4), ("autoencoder", 64)],
)  # fmt: skip
def test_every_layer_name_selects_features(layer: str, features: int) -> None:
    net, found = try_network(PREACT, layer, (3, 16, 16), 10)
    assert found == features
    assert layer_of(net, "penultimate")[0] is head(net) is net.linear


def test_the_penultimate_features_are_the_pooled_outputs_of_the_last_block() -> None:
    net = build().eval()
    penultimate, block = FeatureHook(net, "penultimate"), FeatureHook(net, "layer4")
    with torch.no_grad(), penultimate as tap, block as last:
        logits = net(torch.rand(2, 3, 16, 16))
        features = tap.values
        torch.testing.assert_close(last.values.unflatten(1, (32, 4)).mean(dim=2), features)
        torch.testing.assert_close(net.linear(features), logits)


def test_the_memory_format_is_contiguous_for_narrow_strided_shortcuts() -> None:
    formats = [memory_format_of(build(width=width), CPU) for width in (4, 15, 16, 64)]
    assert formats == [CONTIGUOUS, CONTIGUOUS, CHANNELS_LAST, CHANNELS_LAST]


@pytest.mark.parametrize("changes", [{"stem": "cifar"}, {"width": 0}, {"width": None}])
def test_a_stem_and_an_invalid_width_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"model\.(stem|width|name)"):
        check_model(PREACT | changes)


# Every filter with a layer of its own, the protocols' layers, and both repairs of normal layers.
CELLS = (
    ("defense=spectral",), ("defense=beatrix",), ("defense=spectre",), ("defense=scan",),
    ("defense=spectral", "protocol.layer=layer4"), ("defense=strip",), ("defense=fine_pruning",),
    ("defense=anp", "defense.steps=4"),
)  # fmt: skip


@pytest.mark.parametrize("words", CELLS, ids=" ".join)
def test_a_cell_trains_filters_and_repairs_it(words: tuple[str, ...], tmp_path: Path) -> None:
    record = run_here(
        tmp_path / "store", tmp_path / "cell", "model=preactresnet18", "model.width=4",
        "protocol.clean_holdout=20", *words,
    )  # fmt: skip
    assert record["status"] == "done"
    assert record["choices"]["model"] == "preactresnet18-w4"
    assert 0 <= record["nat2"] <= 1
