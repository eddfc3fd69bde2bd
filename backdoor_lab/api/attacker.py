"""What an attack uses and which images it poisons, from the arguments of public functions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from backdoor_lab.api.arrays import as_seed, class_index
from backdoor_lab.api.methods import defaults
from backdoor_lab.api.networks import Normalize, SelfNormalizing, outputs_of
from backdoor_lab.attacks.base import AttackContext, Trigger, unchanged
from backdoor_lab.attacks.plan import PoisonSpec, check_pair, implied
from backdoor_lab.core import validation
from backdoor_lab.core.types import LabeledImages
from backdoor_lab.training.data_loader import seeded_augmentation
from backdoor_lab.training.recipe import Recipe

Augment = Mapping[str, Any] | None
"""How the victim augments training images: any of the keys `AUGMENTATIONS`, with the meaning and
the defaults that they have in ``conf/recipe``. None: not at all."""
AUGMENTATIONS = ("crop_padding", "flip", "cutout")
_VERSIONED = re.compile(r"(?P<name>[a-z0-9_]+)@(?P<version>0|[1-9][0-9]*)")
_PLANNED = ("ratio_of", "placement", "poison_from", "asr_on", "apply_trigger", "label_mode",
            "cover_rate")  # fmt: skip


def class_count(labels: Tensor) -> int:
    """Returns the number of classes, k, of labels in 0..k-1. Raises ValueError if there are no
    labels."""
    if not len(labels):
        raise ValueError("`labels` must have at least one value, got 0")
    return int(labels.max()) + 1


def class_pair(target: object, source: object, classes: int) -> tuple[int, int | None]:
    """Returns the target class and the source class, which may be None. Raises TypeError and
    ValueError as `class_index` does, and ValueError if they are equal."""
    found = class_index("target", target, classes)
    start = None if source is None else class_index("source", source, classes)
    check_pair(start, found)
    return found, start


def attack_context(
    images: Tensor, labels: Tensor, target: int, source: int | None, seed: int,
    model: nn.Module | None, normalize: Normalize, augment: Augment,
) -> AttackContext:  # fmt: skip
    """Returns what an attack may use. `images` and `labels` must have been checked. The surrogate
    is a copy of `model`."""
    network = None if model is None else SelfNormalizing.copy_of(model, normalize)
    classes = class_count(labels)
    if network is not None and (outputs := outputs_of(network, images[:1])) < classes:
        raise ValueError(
            f"`model` must have an output for each of the {classes} classes, but has {outputs}"
        )
    names = tuple(map(str, range(classes)))
    device = torch.device("cpu") if network is None else network.device
    return AttackContext(
        LabeledImages(images, labels, names), target, source, as_seed(seed),
        partial(present, network), device, augmentation(augment),
    )  # fmt: skip


def present(network: nn.Module | None) -> nn.Module:
    """Returns the surrogate `network`. Raises ValueError if there is none."""
    if network is None:
        raise ValueError("`model` is missing: the attack needs a surrogate trained on clean images")
    return network


def augmentation(augment: Augment) -> Any:
    """Returns the function that `AttackContext.augment` is to be."""
    if augment is None:
        return unchanged
    if not isinstance(augment, Mapping):
        raise TypeError(f"`augment` must be a mapping or None, got {type(augment).__name__}")
    validation.keys("augment", augment, AUGMENTATIONS)
    needed = {"name": "augment", "epochs": 1, "batch_size": 2, "lr": 1.0}
    return partial(seeded_augmentation, recipe=Recipe.of(needed | dict(augment)))


def plan_of(
    method: Trigger, protocol: object, target: object, source: object, ratio: object, classes: int
) -> tuple[str, PoisonSpec]:
    """Returns the protocol with its version, such as ``group13@1``, and the specification of the
    attack. As on the command line, the trigger decides about labels and cover images, and an
    attack on one source class attacks the class after the target by default."""
    to, start = class_pair(target, source, classes)
    if start is None and method.source_specific:
        start = (to + 1) % classes
        check_pair(start, to)
    name = protocol_name(protocol)
    options = defaults("protocols", name, source=source is not None)
    options |= {"label_mode": method.label_mode, "cover_rate": method.cover_rate}
    options |= implied(method.label_mode, on_source=source is None and start is not None)
    words = {key: options[key] for key in _PLANNED}
    if (given := share(ratio)) > 1 and options["ratio_of"] != "count":
        raise ValueError(
            f"`ratio` must satisfy 0 <= ratio <= 1, got {given:g}; {name} takes it as a share, see"
            " `protocol`"
        )
    covered = method.cover_from(to, start, classes)
    plan = PoisonSpec(to, start, given, **words, cover_from=covered)
    if plan.apply_trigger != "before_augmentation":
        raise ValueError(
            f"`protocol`: {name} applies the trigger after augmentation, which only a training loop"
            " can do: choose another protocol, and apply the trigger in the loop, to augmented"
            " images"
        )
    return f"{name}@{options['version']}", plan


def protocol_name(protocol: object) -> str:
    """Returns the name of a protocol without its version. Raises TypeError unless `protocol` is a
    string, ValueError unless it names a protocol and, if it has one, its present version."""
    if not isinstance(protocol, str):
        raise TypeError(f"`protocol` must be a string, got {type(protocol).__name__}")
    found = _VERSIONED.fullmatch(protocol)
    name = protocol if found is None else found["name"]
    version = defaults("protocols", name)["version"]
    if found is not None and int(found["version"]) != version:
        raise ValueError(
            f"`protocol` must be {name}@{version}, the version in this package, got {protocol!r}"
        )
    return name


def share(ratio: object) -> float:
    """Returns `ratio` rounded to 10 digits, as on the command line. Raises TypeError unless it is a
    number; its range depends on the protocol."""
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float, np.integer, np.floating)):
        raise TypeError(f"`ratio` must be a number, got {type(ratio).__name__}")
    return float(f"{float(ratio):.10g}")
