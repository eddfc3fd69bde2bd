"""Training recipes: checked hyperparameters, the optimizer and the learning rate schedule."""

from __future__ import annotations

import math
from dataclasses import MISSING, asdict, dataclass, fields, replace
from functools import partial
from typing import Any

from backdoor_lab.core import validation
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.lazy import nn, torch
from backdoor_lab.training.parameter_groups import parameter_groups

SCHEDULES = ("steps", "onecycle", "cosine", "triangle", "warmup_cosine", "constant")
ALTERNATING = "alternating"
SGD, ADAMW = "sgd", "adamw"
OPTIMIZERS = (SGD, ADAMW)


@dataclass(frozen=True)
class Recipe:
    """The hyperparameters of training: an optimizer, its schedule over `epochs` epochs, and
    augmentation.

    `optimizer` is ``sgd`` or ``adamw``. AdamW (Loshchilov, Hutter 2019) has β = (0.9, 0.999) and no
    `momentum`, `nesterov` or `bias_lr`; its weight decay spares biases, normalization, class tokens
    and position embeddings, and `layer_decay` multiplies the learning rate once per layer below the
    head, as `parameter_groups` describes. If `clip_norm` is not 0, the gradients of each step are
    scaled down to at most this Euclidean norm.

    `milestones` and `warmup` are fractions of the total training time, so that a schedule scales
    with the number of epochs. `crop_padding` and `cutout` (a side length) are in pixels; `mixup`
    and `cutmix` are the α of a Beta distribution. For these four, 0 means off. `flip` mirrors each
    image with probability 1/2 or, if ``alternating``, in every other epoch.

    The schedules ``triangle`` and ``warmup_cosine`` rise linearly from `lr_start` to 1, and then
    fall to `lr_end`, linearly or along half a cosine, in units of `lr`. The shifts of batch
    normalization have `bias_lr` times the learning rate, and the same weight decay as other
    parameters (Jordan 2024, arXiv 2404.00498, section 3.4).
    """

    name: str
    epochs: int
    batch_size: int
    lr: float
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    schedule: str = "steps"
    milestones: tuple[float, ...] = (0.5, 0.75)
    gamma: float = 0.1
    warmup: float = 0.0
    label_smoothing: float = 0.0
    crop_padding: int = 0
    flip: bool | str = False
    cutout: int = 0
    mixup: float = 0.0
    cutmix: float = 0.0
    lr_start: float = 0.2
    lr_end: float = 0.0
    bias_lr: float = 1.0
    optimizer: str = SGD
    layer_decay: float = 1.0
    clip_norm: float = 0.0

    @classmethod
    def of(cls, config: dict[str, Any]) -> Recipe:
        """Create the recipe of a configuration. Raises ConfigError for unknown keys and invalid
        values."""
        validation.keys("recipe", config, [field.name for field in fields(cls)])
        needed = [field.name for field in fields(cls) if field.default is MISSING]
        if missing := [name for name in needed if name not in config]:
            raise ConfigError(f"`recipe` needs a value for {', '.join(missing)}")
        shares = config.get("milestones") or []
        if not isinstance(shares, (list, tuple)):
            raise ConfigError(
                f"`recipe.milestones` must be a list such as [0.5, 0.75], got {shares!r}"
            )
        absent = {"momentum": 0.0} if config.get("optimizer") == ADAMW else {}
        recipe = cls(**{**absent, **config, "milestones": tuple(shares)})
        recipe._check()
        return recipe._plain()

    def _plain(self) -> Recipe:
        # 1 and 1.0 must give the same identity.
        kinds: dict[object, type] = {"int": int, "float": float}
        numbers = {f.name: kinds[f.type](getattr(self, f.name)) for f in fields(self)
                   if f.type in kinds}  # fmt: skip
        return replace(self, **numbers, milestones=tuple(map(float, self.milestones)))

    def decides(self) -> dict[str, Any]:
        """The part of the recipe that affects the weights: everything except its name."""
        values = asdict(self)
        values.pop("name")
        # Keys added later are omitted at their default, so that older recipes keep their identity.
        for key in ("mixup", "cutmix", "lr_start", "lr_end", "bias_lr", "optimizer",
                    "layer_decay", "clip_norm"):  # fmt: skip
            if values[key] == _DEFAULTS[key]:
                values.pop(key)
        return values | {"milestones": list(self.milestones)}

    def _check(self) -> None:
        validation.whole("recipe.epochs", self.epochs, low=1)
        validation.whole("recipe.batch_size", self.batch_size, low=2)
        validation.number("recipe.lr", self.lr, low=0)
        validation.number("recipe.momentum", self.momentum, low=0, below=1)
        validation.number("recipe.weight_decay", self.weight_decay, low=0)
        validation.number("recipe.label_smoothing", self.label_smoothing, low=0, below=1)
        validation.choice("recipe.schedule", self.schedule, SCHEDULES)
        validation.number("recipe.gamma", self.gamma, low=0)
        validation.number("recipe.warmup", self.warmup, low=0, below=1)
        validation.whole("recipe.crop_padding", self.crop_padding, low=0, below=257)
        validation.whole("recipe.cutout", self.cutout, low=0, below=2**15)
        validation.number("recipe.mixup", self.mixup, low=0)
        validation.number("recipe.cutmix", self.cutmix, low=0)
        validation.number("recipe.lr_start", self.lr_start, low=0)
        validation.number("recipe.lr_end", self.lr_end, low=0)
        validation.number("recipe.bias_lr", self.bias_lr, low=2**-20)
        if not isinstance(self.flip, bool) and self.flip != ALTERNATING:
            raise ConfigError(
                f"`recipe.flip` must be true, false or {ALTERNATING}, got {self.flip!r}"
            )
        validation.number("recipe.clip_norm", self.clip_norm, low=0)
        validation.flag("recipe.nesterov", self.nesterov)
        for share in self.milestones:
            validation.number("recipe.milestones", share, low=0, below=1)
        self._check_optimizer()
        if self.nesterov and not self.momentum:
            raise ConfigError("`recipe.nesterov=true` needs a `recipe.momentum` above 0")
        if self.schedule == "onecycle" and not self.warmup:
            raise ConfigError(
                "`recipe.schedule=onecycle` needs a `recipe.warmup` above 0, such as 0.2"
            )

    def _check_optimizer(self) -> None:
        validation.choice("recipe.optimizer", self.optimizer, OPTIMIZERS)
        if not 0 < validation.number("recipe.layer_decay", self.layer_decay) <= 1:
            raise ConfigError(
                "`recipe.layer_decay` must satisfy 0 < recipe.layer_decay <= 1,"
                f" got {self.layer_decay!r}"
            )
        if self.optimizer == SGD:
            if self.layer_decay != 1:
                raise ConfigError(
                    f"`recipe.layer_decay`={self.layer_decay:g} needs recipe.optimizer=adamw"
                )
            return
        if self.momentum or self.nesterov:
            raise ConfigError(
                f"`recipe.optimizer={self.optimizer}` has no momentum: set recipe.momentum=0 and"
                " recipe.nesterov=false"
            )
        if self.bias_lr != 1:
            raise ConfigError(
                f"`recipe.bias_lr`={self.bias_lr:g} needs recipe.optimizer=sgd: set it to 1"
            )


_DEFAULTS = {field.name: field.default for field in fields(Recipe)}


def optimizer_of(
    recipe: Recipe, net: nn.Module, total_steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Create the recipe's optimizer and its learning rate schedule, which is stepped `total_steps`
    times, once per batch."""
    optimizer = (_sgd if recipe.optimizer == SGD else _adamw)(recipe, net)
    return optimizer, _schedule(recipe, optimizer, total_steps)


def _adamw(recipe: Recipe, net: nn.Module) -> torch.optim.Optimizer:
    groups = parameter_groups(
        net, lr=recipe.lr, weight_decay=recipe.weight_decay, layer_decay=recipe.layer_decay
    )
    fused = all(each.device.type == "cpu" for each in net.parameters()) or None
    return torch.optim.AdamW(groups, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=fused)


def _sgd(recipe: Recipe, net: nn.Module) -> torch.optim.Optimizer:
    parameters = [each for each in net.parameters() if each.requires_grad]
    return torch.optim.SGD(
        parameters if recipe.bias_lr == 1 else _groups(recipe, net, parameters),
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
        # The fused kernel makes one pass over weights, gradients and momenta; the last bit may
        # differ. Otherwise None rather than False: torch then chooses its multi-tensor kernel.
        fused=all(each.device.type == "cpu" for each in parameters) or None,
    )


def _groups(recipe: Recipe, net: nn.Module, parameters: list[nn.Parameter]) -> list[dict[str, Any]]:
    """Two parameter groups: the shifts of batch normalization, with their own learning rate, and
    the other parameters.

    SGD multiplies the weight decay by the learning rate. The weight decay of the shifts is
    therefore divided by `bias_lr`, so that the product is the same for all parameters.
    """
    norms = [each for each in net.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)]
    shifts = [each.bias for each in norms if each.affine and each.bias.requires_grad]
    ids = set(map(id, shifts))
    lr, decay = recipe.lr * recipe.bias_lr, recipe.weight_decay / recipe.bias_lr
    others = {"params": [each for each in parameters if id(each) not in ids]}
    return [others, *([{"params": shifts, "lr": lr, "weight_decay": decay}] if shifts else [])]


def _schedule(
    recipe: Recipe, optimizer: torch.optim.Optimizer, total_steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    if recipe.schedule == "onecycle":
        # total_steps + 1, because the scheduler is also stepped after the last batch. torch divides
        # by warmup * (total_steps + 1) - 1, which must not be zero.
        warmup = recipe.warmup
        if warmup * (total_steps + 1) == 1:
            warmup *= 1.001
        rates = [group["lr"] for group in optimizer.param_groups]
        return torch.optim.lr_scheduler.OneCycleLR(
            optimizer, rates, total_steps + 1, pct_start=warmup, cycle_momentum=False
        )
    if recipe.schedule == "triangle":
        return torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_triangle, recipe, total_steps))
    if recipe.schedule == "warmup_cosine":
        return torch.optim.lr_scheduler.LambdaLR(
            optimizer, partial(_warm_cosine, recipe, total_steps)
        )
    if recipe.schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total_steps)
    steps = [round(share * total_steps) for share in recipe.milestones]
    if recipe.schedule == "constant":
        steps = []
    return torch.optim.lr_scheduler.MultiStepLR(optimizer, steps, recipe.gamma)


def _triangle(recipe: Recipe, total_steps: int, step: int) -> float:
    """The learning rate at `step` (counted from 0), in units of `recipe.lr`."""
    peak = int(recipe.warmup * total_steps)
    if step < peak:
        return recipe.lr_start + (1 - recipe.lr_start) * step / peak
    return 1 + (recipe.lr_end - 1) * (step - peak) / (total_steps - peak)


def _warm_cosine(recipe: Recipe, total_steps: int, step: int) -> float:
    """The learning rate at `step` (counted from 0), in units of `recipe.lr`."""
    peak = int(recipe.warmup * total_steps)
    if step < peak:
        return _triangle(recipe, total_steps, step)
    fallen = (1 - math.cos(math.pi * (step - peak) / (total_steps - peak))) / 2
    return 1 + (recipe.lr_end - 1) * fallen
