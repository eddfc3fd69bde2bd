"""Builds networks: torchvision's ResNets with any width and a CIFAR or ImageNet stem, airbench and
the pre-activation ResNet18 with any width, wide ResNets for small images, torchvision's other
classifiers by name, and the networks of timm. Resizes images if a network has an input size."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

from backdoor_lab.core import streams, validation
from backdoor_lab.core.errors import ConfigError, many, unknown
from backdoor_lab.core.lazy import Tensor, nn, torch
from backdoor_lab.core.rng import derive
from backdoor_lab.exchange.network_file import INPUT_SIZE, LIBRARY, NEEDED, NORMALIZE, OPTIONAL
from backdoor_lab.training.model_group import IMAGENET, TIMM, check_optional
from backdoor_lab.training.own_models import check_own, is_own, make_own
from backdoor_lab.training.timm_models import build_timm, check_timm, input_size_of, mean_and_std

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


def is_quickly_known(model: dict[str, Any]) -> bool:
    """Whether `check_model` needs no library of networks for this `model` group."""
    name = model["name"]
    known = name in DEPTHS or name in OWN or str(name).startswith(WIDE)
    return known and model.get(LIBRARY) is None


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
    """Raises ConfigError if a `model` group has an unknown name, or a width, stem or other option
    that this network cannot have."""
    if is_own(config):
        check_own(config)
        return
    validation.keys("model", config, (*NEEDED, *OPTIONAL))
    check_optional(config)
    name, width, stem = config["name"], config.get("width"), config.get("stem")
    if config.get(LIBRARY) == TIMM:
        check_timm(config)
        return
    if not is_quickly_known(config) and name not in (names := [*classifiers(), *OWN]):
        raise unknown("`model.name`", name, names, f", {WIDE_NAMES}")
    if name in OWN:
        if stem is not None:
            raise ConfigError(f"`model.name={name}` has no `stem`; set `model.stem` to null")
        if name == AIRBENCH and config.get(INPUT_SIZE) is not None:
            raise ConfigError(
                f"`model.{INPUT_SIZE}` does not apply to airbench, whose first convolution is"
                " computed from the images: set dataset.size instead"
            )
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

    Input float (n, channels, H, W), output logits float (n, classes). If `config` has an input
    size, the network resizes its images to this size first, bilinearly with antialiasing.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, streams.WEIGHTS))
        random = make_own if is_own(config) else _random
        net = random(config, channels, classes)
    if (size := input_size_of(config)) is not None:
        net.register_forward_pre_hook(partial(_resized, size=size))
    return net


def _random(config: dict[str, Any], channels: int, classes: int) -> nn.Module:
    name = config["name"]
    if config.get(LIBRARY) == TIMM:
        return build_timm(config, channels, classes)
    if _is_resnet(name):
        return _resnet(name, config["width"], config["stem"], channels, classes)
    if name == AIRBENCH:
        from backdoor_lab.training.airbench import Airbench

        return Airbench(config["width"], channels, classes)
    if name == PREACT:
        from backdoor_lab.training.preact_resnet import PreActResNet18

        return PreActResNet18(config["width"], channels, classes)
    if (wide := depth_and_factor(name)) is not None:
        from backdoor_lab.training.wide_resnet import WideResNet

        return WideResNet(*wide, channels, classes)
    return _other(name, channels, classes)


def _resized(_: nn.Module, inputs: tuple[Tensor, ...], *, size: int) -> tuple[Tensor, ...] | None:
    images, *more = inputs
    if images.shape[-2:] == (size, size):
        return None
    resize = torch.nn.functional.interpolate
    return resize(images, (size, size), mode="bilinear", antialias=True), *more


def stated_normalization(
    model: dict[str, Any], channels: int
) -> tuple[list[float], list[float]] | None:
    """The mean and the standard deviation of each channel that `model.normalize` states, on the
    0..255 scale; None if it states none. Raises ConfigError for another number of channels."""
    said = model.get(NORMALIZE)
    if said is None:
        return None
    pair = {"imagenet": IMAGENET}.get(said) if isinstance(said, str) else said
    mean, std = pair or mean_and_std(model["name"])
    if len(mean) != channels:
        raise ConfigError(
            f"`model.{NORMALIZE}={said}` has {many(len(mean), 'channel')}, but the images have"
            f" {channels}: set model.{NORMALIZE}=[[mean, ...],[std, ...]], with a number for each"
            " channel"
        )
    return [255.0 * value for value in mean], [255.0 * value for value in std]


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
