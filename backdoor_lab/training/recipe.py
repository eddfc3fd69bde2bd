"""How a network is trained: the numbers of a recipe, checked, and their schedule."""

from __future__ import annotations

from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import Any

from torch import nn, optim

from backdoor_lab import checks
from backdoor_lab.errors import ConfigError

SCHEDULES = ("steps", "onecycle", "cosine", "constant")


@dataclass(frozen=True)
class Recipe:
    """SGD with a schedule over `epochs` passes, and the augmentation of each batch.

    `milestones` and `warmup` are shares of the whole run, so that every schedule follows the
    number of epochs. `crop` pads by so many pixels, `cutout` is a side in pixels, `mixup` and
    `cutmix` are the α of a Beta distribution; 0 is off.
    """

    name: str
    epochs: int
    batch: int
    lr: float
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    schedule: str = "steps"
    milestones: tuple[float, ...] = (0.5, 0.75)
    gamma: float = 0.1
    warmup: float = 0.0
    label_smoothing: float = 0.0
    crop: int = 0
    flip: bool = False
    cutout: int = 0
    mixup: float = 0.0
    cutmix: float = 0.0

    @classmethod
    def of(cls, config: dict[str, Any]) -> Recipe:
        """The recipe in a configuration; ConfigError for an unknown key or a value out of range."""
        checks.keys("recipe", config, [field.name for field in fields(cls)])
        needed = [field.name for field in fields(cls) if field.default is MISSING]
        if missing := [name for name in needed if name not in config]:
            raise ConfigError(f"`recipe` needs a value for {', '.join(missing)}")
        shares = config.get("milestones") or []
        if not isinstance(shares, (list, tuple)):
            raise ConfigError(f"`recipe.milestones` must be a list, as [0.5, 0.75], got {shares!r}")
        recipe = cls(**{**config, "milestones": tuple(shares)})
        recipe._check()
        return recipe._plain()

    def _plain(self) -> Recipe:
        # 1 and 1.0 are one number, whichever way it was typed.
        kinds: dict[object, type] = {"int": int, "float": float}
        numbers = {f.name: kinds[f.type](getattr(self, f.name)) for f in fields(self)
                   if f.type in kinds}  # fmt: skip
        return replace(self, **numbers, milestones=tuple(map(float, self.milestones)))

    def decides(self) -> dict[str, Any]:
        """What of the recipe decides the weights: all but its name."""
        values = asdict(self)
        values.pop("name")
        # Recipes from before there was mixing keep their identity.
        for way in ("mixup", "cutmix"):
            if not values[way]:
                values.pop(way)
        return values | {"milestones": list(self.milestones)}

    def _check(self) -> None:
        checks.whole("recipe.epochs", self.epochs, low=1)
        checks.whole("recipe.batch", self.batch, low=2)
        checks.number("recipe.lr", self.lr, low=0)
        checks.number("recipe.momentum", self.momentum, low=0, below=1)
        checks.number("recipe.weight_decay", self.weight_decay, low=0)
        checks.number("recipe.label_smoothing", self.label_smoothing, low=0, below=1)
        checks.choice("recipe.schedule", self.schedule, SCHEDULES)
        checks.number("recipe.gamma", self.gamma, low=0)
        checks.number("recipe.warmup", self.warmup, low=0, below=1)
        checks.whole("recipe.crop", self.crop, low=0, below=257)
        checks.whole("recipe.cutout", self.cutout, low=0, below=2**15)
        checks.number("recipe.mixup", self.mixup, low=0)
        checks.number("recipe.cutmix", self.cutmix, low=0)
        checks.flag("recipe.flip", self.flip)
        checks.flag("recipe.nesterov", self.nesterov)
        for share in self.milestones:
            checks.number("recipe.milestones", share, low=0, below=1)
        if self.nesterov and not self.momentum:
            raise ConfigError("`recipe.nesterov=true` needs a `recipe.momentum` above 0")
        if self.schedule == "onecycle" and not self.warmup:
            raise ConfigError("`recipe.schedule=onecycle` needs a `recipe.warmup` above 0, as 0.2")


def optimizer_of(
    recipe: Recipe, net: nn.Module, total_steps: int
) -> tuple[optim.Optimizer, optim.lr_scheduler.LRScheduler]:
    """SGD and the recipe's schedule, to be advanced once a step, over exactly `total_steps`."""
    parameters = list(net.parameters())
    sgd = optim.SGD(
        parameters,
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
        # One pass over weights, gradients and momenta instead of several; the last bit may differ.
        # None, not False, elsewhere: torch then takes all of them at once, not one by one.
        fused=all(each.device.type == "cpu" for each in parameters) or None,
    )
    return sgd, _schedule(recipe, sgd, total_steps)


def _schedule(
    recipe: Recipe, sgd: optim.Optimizer, total_steps: int
) -> optim.lr_scheduler.LRScheduler:
    if recipe.schedule == "onecycle":
        # One more than there are steps: the scheduler is advanced after the last one too.
        # The climb takes warmup * steps - 1 of them; torch divides by it, so not zero.
        warmup = recipe.warmup
        if warmup * (total_steps + 1) == 1:
            warmup *= 1.001
        return optim.lr_scheduler.OneCycleLR(
            sgd, recipe.lr, total_steps + 1, pct_start=warmup, cycle_momentum=False
        )
    if recipe.schedule == "cosine":
        return optim.lr_scheduler.CosineAnnealingLR(sgd, total_steps)
    steps = [round(share * total_steps) for share in recipe.milestones]
    if recipe.schedule == "constant":
        steps = []
    return optim.lr_scheduler.MultiStepLR(sgd, steps, recipe.gamma)
