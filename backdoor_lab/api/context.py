"""Gives a defense the user's model and images, as the command line gives it those of a cell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from backdoor_lab.api.arrays import as_images, as_labels
from backdoor_lab.api.networks import Normalize, SelfNormalizing, outputs_of
from backdoor_lab.config_loader import conf_dir
from backdoor_lab.core import streams
from backdoor_lab.core.errors import unknown
from backdoor_lab.core.rng import derive
from backdoor_lab.core.types import LabeledImages
from backdoor_lab.defenses.context import DefenseContext, TrainingHyperparameters
from backdoor_lab.training.data_loader import augmented
from backdoor_lab.training.recipe import Recipe

RecipeChoice = str | Mapping[str, Any] | None
"""How the model was trained: the name of a file in conf/recipe, a mapping of values that replace
those of ``report.yaml``, or None for ``report.yaml`` itself."""


@dataclass(frozen=True)
class Inputs:
    """A model and the images that a defense works with, as the user passes them."""

    model: nn.Module
    normalize: Normalize
    recipe: RecipeChoice
    images: Any = None
    labels: Any = None
    clean: Any = None


def context_of(inputs: Inputs, seed: int) -> DefenseContext:
    """Returns the context of a defense. `seed` is the seed that a cell would have. The user's model
    is not changed. Raises ValueError or TypeError for invalid inputs."""
    network = SelfNormalizing.copy_of(inputs.model, inputs.normalize)
    device = network.device
    images, labels = _training(inputs)
    clean = None if inputs.clean is None else clean_pair(inputs.clean)
    sample = images if images is not None else clean[0] if clean is not None else None
    if sample is None or not len(sample):
        raise ValueError("`images` must have at least one row")
    classes = tuple(map(str, range(outputs_of(network, sample[:1]))))
    _check_range("labels", labels, len(classes))
    if clean is not None:
        _check_range("clean", clean[1], len(classes))
        if images is not None and clean[0].shape[1:] != images.shape[1:]:
            raise ValueError(
                "`clean` must have images of the same shape as `images`,"
                f" {tuple(images.shape[1:])}, got {tuple(clean[0].shape[1:])}"
            )
    recipe = recipe_of(inputs.recipe)

    def shown(where: Tensor, generator: torch.Generator | None) -> Tensor:
        if images is None:
            raise ValueError("`images` are missing: this method needs the training set")
        found = images[where].to(device)
        return found if generator is None else augmented(found, recipe, generator)

    def fresh(number: int) -> nn.Module:
        return fresh_copy(inputs.model, inputs.normalize, derive(seed, streams.DEFENSE, number))

    return DefenseContext(
        classes=classes,
        labels=labels,
        images=shown,
        augment=lambda found, generator: augmented(found, recipe, generator),
        network=lambda: SelfNormalizing.copy_of(inputs.model, inputs.normalize),
        fresh=fresh,
        hyperparameters=TrainingHyperparameters(
            recipe.epochs, recipe.batch_size, recipe.lr, recipe.momentum, recipe.weight_decay
        ),
        seed=derive(seed, streams.FILTER),
        clean=None if clean is None else LabeledImages(*clean, classes),
        device=device,
    )


def clean_pair(clean: object) -> tuple[Tensor, Tensor]:
    """Returns clean images uint8 (m, C, H, W), m > 0, and their labels int64 (m,)."""
    first, labels = pair("clean", clean)
    images = as_images("clean", first)[0].contiguous()
    if not len(images):
        raise ValueError("`clean` must have at least one row")
    return images, as_labels("clean", labels, len(images))


def pair(name: str, value: object) -> tuple[object, object]:
    """Returns `value` if it is a pair, otherwise raises TypeError."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(f"`{name}` must be a pair of arrays, got {type(value).__name__}")
    return value[0], value[1]


def recipe_of(choice: RecipeChoice) -> Recipe:
    """Returns a recipe. Raises ConfigError for an unknown name, key or value."""
    if choice is None or isinstance(choice, str):
        return Recipe.of(_recipe_file("report" if choice is None else choice))
    if isinstance(choice, Mapping):
        return Recipe.of({**_recipe_file("report"), **choice})
    raise TypeError(f"`recipe` must be a name, a mapping or None, got {type(choice).__name__}")


def fresh_copy(model: nn.Module, normalize: Normalize, seed: int) -> SelfNormalizing:
    """Returns a wrapped copy of `model` in eval mode with new parameters, which depend on `seed`
    alone. Raises ValueError if a module has parameters and no method ``reset_parameters``."""
    made = SelfNormalizing.copy_of(model, normalize)
    device = made.device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # On the CPU, so that all devices start from the same parameters.
        reinitialize(made.model.cpu())
    made.model.to(device)
    return made


def reinitialize(model: nn.Module) -> None:
    """Calls ``reset_parameters`` of every module in `model`, of a module after those that it
    contains. Raises ValueError if a module has parameters and no such method."""
    for name, module in reversed(list(model.named_modules())):
        # nn.MultiheadAttention and nn.Transformer have only the private method.
        reset = getattr(module, "reset_parameters", getattr(module, "_reset_parameters", None))
        if reset is not None:
            reset()
        elif any(True for _ in module.parameters(recurse=False)):
            where = f"module {name}" if name else "top module"
            raise ValueError(
                f"`model` cannot be trained from scratch: its {where} ({type(module).__name__}) has"
                " parameters, but no method reset_parameters()"
            )


def _training(inputs: Inputs) -> tuple[Tensor | None, Tensor]:
    if inputs.images is None:
        return None, torch.zeros(0, dtype=torch.int64)
    images = as_images("images", inputs.images)[0].contiguous()
    return images, as_labels("labels", inputs.labels, len(images))


def _check_range(name: str, labels: Tensor, classes: int) -> None:
    if len(labels) and int(labels.max()) >= classes:
        raise ValueError(
            f"`{name}` must have labels below {classes}, the number of outputs of the model, got"
            f" {int(labels.max())}"
        )


def _recipe_file(name: str) -> dict[str, Any]:
    files = {path.stem: path for path in sorted(Path(conf_dir()).glob("recipe/*.yaml"))}
    if name not in files:
        raise unknown("`recipe`", name, files)
    own: Any = OmegaConf.to_container(OmegaConf.load(files[name]))
    values: dict[str, Any] = {}
    for base in own.pop("defaults", ["_self_"]):
        values |= own if base == "_self_" else _recipe_file(base)
    return values
