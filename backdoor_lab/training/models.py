"""Builds networks: torchvision's ResNets with any width and a CIFAR or ImageNet stem, airbench and
the pre-activation ResNet18 with any width, wide ResNets for small images, and torchvision's other
classifiers by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from backdoor_lab.core import streams, validation
from backdoor_lab.core.errors import ConfigError, unknown
from backdoor_lab.core.lazy import nn, torch
from backdoor_lab.core.rng import derive

STEMS = ("cifar", "imagenet")
AIRBENCH, PREACT = "airbench", "preactresnet18"
OWN = (AIRBENCH, PREACT)
"""The networks that are implemented in this package. They have a width but no stem."""
DEPTHS = {
    "resnet18": [2, 2, 2, 2],
    "resnet34": [3, 4, 6, 3],
    "resnet50": [3, 4, 6, 3],
    "resnet101": [3, 4, 23, 3],
}
"""The number of blocks in each stage of a ResNet. These ResNets can have any width."""
WIDE, WIDE_NAMES = "wideresnet", "wideresnet<6k+4>_<widening factor>, such as wideresnet16_4"
"""The first letters of the names of wide ResNets, and how these names are formed."""
_WIDE_NAME = re.compile(r"wideresnet([1-9]\d{0,2})_([1-9]\d{0,2})")
_KEYS = ("name", "width", "stem")


def is_quickly_known(name: object) -> bool:
    """Whether `check_model` needs no library of networks for a network of this name."""
    return name in DEPTHS or name in OWN or str(name).startswith(WIDE)


def depth_and_factor(name: str) -> tuple[int, int] | None:
    """The depth and the widening factor in a name; None if it is not the name of such a network.

    >>> depth_and_factor("wideresnet16_4")
    (16, 4)
    >>> depth_and_factor("wideresnet18_4"), depth_and_factor("wide_resnet50_2")
    (None, None)
    """
    found = _WIDE_NAME.fullmatch(name)
    if found is None:
        return None
    depth, factor = int(found[1]), int(found[2])
    return (depth, factor) if depth >= 10 and depth % 6 == 4 else None


def check_model(config: dict[str, Any]) -> None:
    """Raises ConfigError if a `model` group has an unknown name, or a width or stem that this
    network cannot have."""
    validation.keys("model", config, _KEYS)
    name, width, stem = config["name"], config["width"], config["stem"]
    if not is_quickly_known(name) and name not in (names := [*classifiers(), *OWN]):
        raise unknown("`model.name`", name, names, f", {WIDE_NAMES}")
    if name in OWN:
        if stem is not None:
            raise ConfigError(f"`model.name={name}` has no `stem`; set `model.stem` to null")
        _check_width(width)
        return
    if name.startswith(WIDE) and depth_and_factor(name) is None:
        raise ConfigError(
            f"`model.name={name}`: the depth of a wide ResNet must be 10, 16, 22, 28 and so on, and"
            f" its widening factor at least 1: {WIDE_NAMES}"
        )
    if not _is_resnet(name):
        if width is not None or stem is not None:
            raise ConfigError(f"`model.name={name}` has no `width` or `stem`; set both to null")
        return
    validation.choice("model.stem", stem, STEMS)
    _check_width(width)
    if width != 64 and name not in DEPTHS:
        raise ConfigError(f"`model.width` must be 64 for {name}, got {width}")


def _check_width(width: Any) -> None:
    validation.whole("model.width", width, low=1, below=4097)
    if not isinstance(width, int):
        raise ConfigError(
            f"`model.width` must be an integer without a decimal point, got {width!r}"
        )


def classifiers() -> list[str]:
    """The names of torchvision's image classifiers."""
    from torchvision import models

    return list(models.list_models(module=models))


def build_model(config: dict[str, Any], *, channels: int, classes: int, seed: int) -> nn.Module:
    """Build a network with random weights, which depend only on `seed` and the shapes.

    Input float (n, channels, H, W), output logits float (n, classes).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, streams.WEIGHTS))
        if _is_resnet(config["name"]):
            net = _resnet(config["name"], config["width"], config["stem"], channels, classes)
        elif config["name"] == AIRBENCH:
            from backdoor_lab.training.airbench import Airbench

            net = Airbench(config["width"], channels, classes)
        elif config["name"] == PREACT:
            from backdoor_lab.training.preact_resnet import PreActResNet18

            net = PreActResNet18(config["width"], channels, classes)
        elif (wide := depth_and_factor(config["name"])) is not None:
            from backdoor_lab.training.wide_resnet import WideResNet

            net = WideResNet(*wide, channels, classes)
        else:
            net = _other(config["name"], channels, classes)
    return net


def _is_resnet(name: str) -> bool:
    return name.startswith(("resnet", "resnext", "wide_resnet"))


def _resnet(name: str, width: int, stem: str, channels: int, classes: int) -> nn.Module:
    from torchvision import models
    from torchvision.models.resnet import BasicBlock, Bottleneck

    net: Any = models.get_model(name, weights=None, num_classes=classes)
    depths = DEPTHS.get(name)
    if width != 64 and depths is not None:
        block: Any = BasicBlock if name in ("resnet18", "resnet34") else Bottleneck
        net.inplanes, net.bn1 = width, nn.BatchNorm2d(width)
        for stage, depth in enumerate(depths):
            layer = net._make_layer(block, width << stage, depth, stride=1 if stage == 0 else 2)
            setattr(net, f"layer{stage + 1}", layer)
        net.fc = nn.Linear((width << 3) * block.expansion, classes)
    if stem == "cifar":
        net.conv1 = nn.Conv2d(channels, width, 3, stride=1, padding=1, bias=False)
        net.maxpool = nn.Identity()
    elif width != 64 or channels != 3:
        net.conv1 = nn.Conv2d(channels, width, 7, stride=2, padding=3, bias=False)
    net.apply(_initialise)
    return net


def _initialise(module: nn.Module) -> None:
    # Initialize as torchvision's ResNet does. The layers that replace some of its layers are not
    # initialized that way.
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)


def _other(name: str, channels: int, classes: int) -> nn.Module:
    from torchvision import models

    make: Callable[..., nn.Module] = models.get_model
    net = make(name, weights=None, num_classes=classes)
    first = next((m for m in net.named_modules() if isinstance(m[1], nn.Conv2d)), None)
    if channels != 3 and first is not None:
        path, conv = first[0], first[1]
        assert isinstance(conv, nn.Conv2d)
        parent = net.get_submodule(path.rpartition(".")[0])
        setattr(parent, path.rpartition(".")[2], _with_channels(conv, channels))
    return net


def _with_channels(conv: nn.Conv2d, channels: int) -> nn.Conv2d:
    size: Any = conv.kernel_size
    return nn.Conv2d(
        channels,
        conv.out_channels,
        size,
        conv.stride,  # type: ignore[arg-type]
        conv.padding,  # type: ignore[arg-type]
        bias=conv.bias is not None,
    )
