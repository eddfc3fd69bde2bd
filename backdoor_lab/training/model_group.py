"""The `model` group of a configuration as a plain dict: its keys, and which of them decide what.

Every network has `name`, `width` and `stem`. The other keys are left out where they have their
default value, so that a network that does not use them is identified without them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from backdoor_lab.core import validation
from backdoor_lab.core.errors import ConfigError, many
from backdoor_lab.exchange.card_file import SMALLEST, Normalization
from backdoor_lab.exchange.network_file import INPUT_SIZE, LIBRARY, NORMALIZE, OPTIONS, WEIGHTS

TIMM = "timm"
FACTORY = "factory"
"""The key of a network of a plug-in (see own_models.py)."""
LIBRARIES = (TIMM,)
IMAGENET: Normalization = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""The mean and the standard deviation of ImageNet's channels on the 0..1 scale."""
NORMALIZATIONS = ("imagenet", TIMM)
_FORM = f"{', '.join(NORMALIZATIONS)} or [[mean, ...],[std, ...]] on the 0..1 scale"


def decides(model: Mapping[str, Any]) -> dict[str, Any]:
    """What affects results: the hash of the initial weights, not the name of their file."""
    found = dict(model)
    if isinstance(found.get(WEIGHTS), dict):
        found[WEIGHTS] = found[WEIGHTS]["digest"]
    return found


def label(model: Mapping[str, Any]) -> str:
    """The network's label in tables: ``resnet18``, ``resnet18-w16`` for a width other than 64,
    ``timm/vit_tiny_patch16_224``, followed by the optional keys that are set.

    >>> label({"name": "vit_tiny_patch16_224", "width": None, "stem": None, "library": "timm",
    ...        "options": {"depth": 2}, "input_size": 32})
    'timm/vit_tiny_patch16_224@32 depth=2'
    """
    width, stem, library = (model.get(key) for key in ("width", "stem", LIBRARY))
    name = model["name"] if model["name"] != "module" else model.get(FACTORY, "module")
    said = str(name) if library is None else f"{library}/{name}"
    said += "" if width in (None, 64) else f"-w{width}"
    said += "" if stem in (None, "cifar") else f"-{stem}"
    said += "" if model.get(INPUT_SIZE) is None else f"@{model[INPUT_SIZE]}"
    words = [f"{key}={value}" for key, value in sorted((model.get(OPTIONS) or {}).items())]
    words += [f"{NORMALIZE}={model[NORMALIZE]}"] if model.get(NORMALIZE) else []
    words += [f"pretrained={decides(model)[WEIGHTS][:8]}"] if model.get(WEIGHTS) else []
    return " ".join([said, *words])


def check_optional(model: Mapping[str, Any]) -> None:
    """Raises ConfigError if an optional key of a `model` group has a value of another form."""
    library, options = model.get(LIBRARY), model.get(OPTIONS)
    if library is not None:
        validation.choice(f"model.{LIBRARY}", library, LIBRARIES)
    if options and library is None and FACTORY not in model:
        raise ConfigError(
            f"`model.{OPTIONS}` has the options of timm or of a network of a plug-in, so it needs"
            f" `model=timm`, or `model.{FACTORY}=package.module:function`"
        )
    if options is not None and not isinstance(options, dict):
        raise ConfigError(f"`model.{OPTIONS}` must be a mapping, got {options!r}")
    if model.get(INPUT_SIZE) is not None:
        validation.whole(f"model.{INPUT_SIZE}", model[INPUT_SIZE], low=1, below=4097)
    _check_normalize(model.get(NORMALIZE), library)


def _check_normalize(said: Any, library: Any) -> None:
    key = f"model.{NORMALIZE}"
    if said is None:
        return
    if isinstance(said, str):
        validation.choice(key, said, NORMALIZATIONS)
        if said == TIMM and library != TIMM:
            raise ConfigError(f"`{key}={TIMM}` needs `model=timm`; the values are {_FORM}")
        return
    parts = said if isinstance(said, list) and len(said) == 2 else ()
    if not parts or not all(isinstance(each, list) and each for each in parts):
        raise ConfigError(f"`{key}` must be null, {_FORM}, got {said!r}")
    if len(parts[0]) != len(parts[1]):
        raise ConfigError(
            f"`{key}` has {many(len(parts[0]), 'mean')} and {many(len(parts[1]), 'deviation')}"
        )
    for name, low, values in zip(("mean", "std"), (-1000.0, SMALLEST), parts, strict=True):
        for value in values:
            validation.number(f"{key}: {name}", value, low=low, below=1000)
