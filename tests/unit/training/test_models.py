"""Networks of torchvision at any width, with weights that depend only on the seed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from backdoor_lab.core.errors import ConfigError
from backdoor_lab.numerics.layers import FeatureHook, head, layer_of
from backdoor_lab.sweep.trial import try_network
from backdoor_lab.training.models import build_model, check_model, classifiers


def spec(name: str = "resnet18", width: int | None = 64, stem: str | None = "cifar") -> Any:
    return {"name": name, "width": width, "stem": stem}


def build(name: str = "resnet18", width: Any = 64, stem: Any = "cifar", **more: Any) -> nn.Module:
    said = {"channels": 3, "classes": 10, "seed": 0} | more
    return build_model(spec(name, width, stem), **said)


def shapes(net: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in net.state_dict().items()}


def parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def weights(net: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in net.parameters()])


def test_the_resnet_of_width_64_has_the_weight_shapes_of_torchvision() -> None:
    ours = build(stem="imagenet", classes=1000)
    assert shapes(ours) == shapes(models.resnet18(weights=None))


def test_the_cifar_stem_has_the_known_number_of_parameters() -> None:
    assert parameters(build()) == 11_173_962


def test_networks_of_half_width_have_half_as_many_channels_as_those_in_torchvision() -> None:
    # Widths other than 64 are rebuilt stage by stage, including resnet50's bottlenecks.
    for name, last in (("resnet18", 512), ("resnet34", 512), ("resnet50", 2048)):
        wide = shapes(models.get_model(name, weights=None, num_classes=10))
        half = shapes(build(name, 32, "imagenet"))
        assert half.keys() == wide.keys()
        assert half["fc.weight"] == (10, last // 2)
        for key, shape in half.items():
            doubled = tuple(2 * n if n not in (1, 3, 7, 10) else n for n in shape)
            assert doubled == wide[key], (name, key)


def test_initial_weights_are_distributed_like_those_of_torchvision() -> None:
    torch.manual_seed(0)
    theirs = models.resnet18(weights=None).state_dict()
    narrow = build(width=16, stem="imagenet").state_dict()
    for name, value in build(stem="imagenet").state_dict().items():
        if value.numel() > 4000 and "fc" not in name:
            assert float(value.std()) == pytest.approx(float(theirs[name].std()), rel=0.05), name
    # With fan_out, a quarter of the channels gives twice the standard deviation.
    ratio = float(narrow["layer3.0.conv2.weight"].std() / theirs["layer3.0.conv2.weight"].std())
    assert ratio == pytest.approx(2, rel=0.1)
    assert float(narrow["layer1.0.bn1.weight"].min()) == 1


@pytest.mark.parametrize(
    ("width", "stem", "channels"),
    [(1, "cifar", 1), (4, "imagenet", 3), (4, "cifar", 3), (64, "imagenet", 1), (64, "cifar", 1)],
)
def test_every_width_and_stem_accepts_color_and_gray_images(
    width: int, stem: str, channels: int
) -> None:
    net = build(width=width, stem=stem, channels=channels, classes=7).eval()
    with torch.inference_mode():
        assert net(torch.zeros(2, channels, 16, 16)).shape == (2, 7)
    conv = net.get_submodule("conv1")
    assert isinstance(conv, nn.Conv2d)
    assert (conv.in_channels, conv.out_channels) == (channels, width)
    assert isinstance(net.get_submodule("maxpool"), nn.Identity) == (stem == "cifar")


@pytest.mark.parametrize(("name", "features"), [("mobilenet_v3_small", 1024), ("alexnet", 4096)])
@pytest.mark.parametrize("channels", [1, 3])
def test_other_torchvision_classifiers_are_accepted_by_name(
    name: str, features: int, channels: int
) -> None:
    _, found = try_network(spec(name, None, None), "penultimate", (channels, 64, 64), 10)
    assert found == features


def test_vgg_is_accepted_by_name() -> None:
    # On the meta device: its linear layers alone take half a gigabyte.
    with torch.device("meta"):
        net = models.vgg11_bn(num_classes=10)
    assert "vgg11_bn" in classifiers()
    assert (head(net).in_features, head(net).out_features) == (4096, 10)


def test_a_network_without_a_linear_layer_is_refused() -> None:
    with pytest.raises(ConfigError, match="SqueezeNet has no linear layer"):
        try_network(spec("squeezenet1_1", None, None), "penultimate", (3, 64, 64), 10)
    try_network(spec("squeezenet1_1", None, None), "features", (3, 64, 64), 10)


def test_a_network_that_cannot_process_the_image_size_is_refused() -> None:
    with pytest.raises(ConfigError, match="alexnet` cannot take images of 3x8x8"):
        try_network(spec("alexnet", None, None), "penultimate", (3, 8, 8), 10)


def test_initial_weights_depend_only_on_the_seed() -> None:
    for config in (spec(width=8), spec("mobilenet_v3_small", None, None)):
        torch.manual_seed(1)
        first = build_model(config, channels=1, classes=10, seed=5)
        torch.manual_seed(2)
        again = build_model(config, channels=1, classes=10, seed=5)
        other = build_model(config, channels=1, classes=10, seed=6)
        assert torch.equal(weights(first), weights(again))
        assert not torch.equal(weights(first), weights(other))


def test_building_a_network_does_not_use_the_global_generator() -> None:
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    build(width=4)
    assert torch.equal(torch.rand(3), expected)


def test_penultimate_features_are_the_input_of_the_last_layer() -> None:
    net = build(width=8).eval()
    images = torch.randn(5, 3, 16, 16)
    with torch.inference_mode(), FeatureHook(net, "penultimate") as tap:
        logits = net(images)
        assert tap.values.shape == (5, 64)
        torch.testing.assert_close(head(net)(tap.values), logits)


def test_a_named_layer_gives_its_flattened_output() -> None:
    net = build(width=8).eval()
    images = torch.randn(5, 3, 16, 16)
    with torch.inference_mode():
        with FeatureHook(net, "layer4") as tap:
            net(images)
        inner: Any = net
        x = inner.relu(inner.bn1(inner.conv1(images)))
        expected = inner.layer4(inner.layer3(inner.layer2(inner.layer1(x))))
        caught = tap.values.clone()
        net(torch.zeros(1, 3, 16, 16))
    assert caught.shape == (5, 64 * 2 * 2)
    torch.testing.assert_close(caught, expected.flatten(1))
    # The hook records nothing outside the `with` block.
    assert torch.equal(tap.values, caught)


def test_unknown_layers_and_models_are_refused_with_a_list_of_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"`protocol.layer` 'layer5' .*mean 'layer\d'.*penultim"):
        layer_of(build(width=4), "layer5")
    with pytest.raises(ConfigError, match=r"`model.name` 'resnet81' .*mean 'resnet\d+'.*Known: "):
        check_model(spec("resnet81"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (spec(width=0), "`model.width` must satisfy 1 <= model.width < 4097, got 0"),
        (spec(width=8.5), "`model.width` must be a whole number, got 8.5"),
        (spec(width="wide"), "`model.width` must satisfy .* got 'wide'"),
        (spec(stem="cifra"), "`model.stem` 'cifra' is not known. Did you mean 'cifar'"),
        (spec("resnext50_32x4d", 32), "`model.width` must be 64 for resnext50_32x4d, got 32"),
        (spec("alexnet", 32, None), "`model.name=alexnet` has no `width` or `stem`"),
        ({**spec(), "depth": 3}, "key .*`model.*'depth' is not known"),
    ],
)
def test_bad_model_options_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_model(config)
