"""Networks of timm by name. timm is optional (``pip install 'backdoor-lab[timm]'``), and nothing is
downloaded: the initial weights are random."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from backdoor_lab.core import validation
from backdoor_lab.core.errors import ConfigError, unknown
from backdoor_lab.core.lazy import nn, torch

OWN_KEYS = ("num_classes", "in_chans", "img_size", "cache_dir", "checkpoint_path", "features_only",
            "exportable", "scriptable", "no_jit")  # fmt: skip
"""Arguments of ``timm.create_model`` that are not accepted in `model.options`; those that begin
with ``pretrained`` are not accepted either."""


def check_timm(model: Mapping[str, Any]) -> None:
    """Raises ConfigError if timm is not installed, has no network of this name, or cannot be given
    these options, and if the group has a width or stem."""
    timm, name = _timm(), model["name"]
    # Other names, such as hf-hub:..., would be looked up on the internet.
    tagged = "." in name
    known = timm.list_pretrained() if tagged else timm.list_models()
    if name not in known:
        raise unknown("`model.name`", name, known, " of timm")
    if model.get("width") is not None or model.get("stem") is not None:
        raise ConfigError(f"`model.name={name}` has no `width` or `stem`; set both to null")
    for key, value in (model.get("options") or {}).items():
        if key in OWN_KEYS or str(key).startswith("pretrained"):
            raise ConfigError(
                f"`model.options.{key}` cannot be set: the data set determines classes, channels"
                " and the size of images (or model.input_size), and initial weights are given as"
                " model.weights=FILE"
            )
        _check_value(f"model.options.{key}", value)


def _check_value(key: str, value: Any) -> None:
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(each, str | bool) or validation.is_number(each) for each in values):
        raise ConfigError(f"`{key}` must be a number, a text, a flag or a list, got {value!r}")


def build_timm(model: Mapping[str, Any], channels: int, classes: int) -> nn.Module:
    """Build a network of timm with random weights. Raises ConfigError, with timm's reason, if timm
    cannot build it with these options."""
    size = input_size_of(model)
    options = dict(model.get("options") or {})
    options |= {} if size is None or not _has_fixed_size(model["name"]) else {"img_size": size}

    def create() -> nn.Module:
        made: nn.Module = _timm().create_model(
            model["name"], pretrained=False, num_classes=classes, in_chans=channels, **options
        )
        return made

    try:
        return create()
    except Exception as error:  # timm's constructors raise almost any exception
        if torch.get_default_device().type == "meta":
            # Some networks compute with values while they are built, which meta tensors lack.
            with torch.device("cpu"):
                return build_timm(model, channels, classes).to("meta")
        said = (str(error).splitlines() or [type(error).__name__])[0]
        chosen = ", ".join(f"{key}={value}" for key, value in sorted(options.items())) or "none"
        raise ConfigError(
            f"timm cannot build `model.name={model['name']}` with these options ({chosen}):"
            f" {said[:200]}"
        ) from error


def input_size_of(model: Mapping[str, Any]) -> int | None:
    """The width and height of the images that a network is given: `model.input_size` or, for a
    network of timm that is built for one size, this size. None if any size is accepted."""
    size: int | None = model.get("input_size")
    if size is None and model.get("library") == "timm" and _has_fixed_size(model["name"]):
        return int(_config(model["name"]).input_size[-1])
    return size


def mean_and_std(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The normalization of the network's images in timm, on the 0..1 scale."""
    found = _config(name)
    return tuple(found.mean), tuple(found.std)


def _has_fixed_size(name: str) -> bool:
    return bool(_config(name).fixed_input_size)


def _config(name: str) -> Any:
    found = _timm().models.get_pretrained_cfg(name)
    if found is None:
        raise ConfigError(f"timm describes no network `{name}`: choose another one")
    return found


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise ConfigError(
            "`model=timm` needs timm, which is not installed: pip install 'backdoor-lab[timm]'"
        ) from error
    return timm
