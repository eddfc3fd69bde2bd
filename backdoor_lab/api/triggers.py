"""Triggers as transforms of torchvision."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import is_pure_tensor

from backdoor_lab import returned
from backdoor_lab.api.arrays import as_images, as_labels, as_seed
from backdoor_lab.api.attacker import (
    Augment,
    attack_context,
    class_count,
    class_pair,
    present,
)
from backdoor_lab.api.boundary import boundary, seeded
from backdoor_lab.api.networks import Normalize
from backdoor_lab.attacks import base
from backdoor_lab.attacks.base import AttackContext
from backdoor_lab.core.types import LabeledImages

# PIL images are included so that they raise an error; they would be ignored otherwise.
_ARRAYS = (np.ndarray, PIL.Image.Image)
_TYPED = (tv_tensors.Image, tv_tensors.Video)


def _may_be_images(value: Any) -> bool:
    """Whether a value of a sample is an array of images and not, for example, of labels."""
    return (is_pure_tensor(value) or isinstance(value, np.ndarray)) and bool(value.ndim >= 3)


class Trigger(v2.Transform):
    """A trigger: calling it returns triggered copies of images.

    Create one with `backdoor_lab.get_trigger`. Inside `torchvision.transforms.v2.Compose`, it
    must come after `PILToTensor` and before images are scaled to floats. Like any transform of
    torchvision, it applies to the images of a sample and passes labels through.

    Attributes:
        name: The name given to `get_trigger`.
        options: All options by name, including the defaults.
        requires: What `fit` needs before the trigger can be applied: any of ``"images"``,
            ``"labels"``, ``"target"``, ``"source"`` and ``"model"``. Empty for most triggers,
            which can be applied at once.
        requires_train: The same for `apply_train` and `apply_cover`, which are optimized for a
            training set by some attacks whose trigger itself is fixed.
    """

    _transformed_types = (_may_be_images, *_TYPED, PIL.Image.Image)

    def __init__(self, name: str, method: base.Trigger, options: dict[str, Any]) -> None:
        super().__init__()
        self.name, self.method, self.options = name, method, options
        needs_model = {"model"} if method.uses_surrogate else set()
        fitted = {"images", "labels", "target"} | needs_model
        fitted |= {"source"} if method.source_specific else set()
        self.requires = frozenset(fitted if method.needs_preparing else ())
        optimized = method.needs_preparing or method.uses_surrogate
        self.requires_train = frozenset(fitted if optimized else ())
        self._context: AttackContext | None = None
        self._fitted_for: tuple[int, int | None] | None = None
        self._fitted_by_user = False
        self._seed: int | None = None

    def forward(self, *inputs: Any) -> Any:
        """Returns triggered copies of images.

        Args:
            *inputs: One array of images, uint8 (n, C, H, W) or (C, H, W) with C 1 or 3, as a NumPy
                array or a tensor on any device. Or, as in any transform of torchvision, several
                values or a structure of values, of which the images are changed: all typed tensors
                and NumPy arrays, but only the first plain tensor with three or more dimensions.

        Returns:
            The same structure; images keep their kind, shape, dtype and device.

        Raises:
            ValueError: The images have another dtype or shape, or the trigger does not fit them.
            TypeError: There is no array.
            NotFittedError: The trigger must be fitted first; see `requires`.
        """
        if not inputs:
            self.check_inputs([])
        if len(inputs) == 1 and not isinstance(inputs[0], (dict, list, tuple)):
            return self._applied(inputs[0], self._shown)
        return super().forward(*inputs)

    def check_inputs(self, flat_inputs: list[Any]) -> None:
        if not any(isinstance(each, (Tensor, *_ARRAYS)) for each in flat_inputs):
            kinds = ", ".join(sorted({type(each).__name__ for each in flat_inputs})) or "nothing"
            raise TypeError(f"`images` must be a NumPy array or a torch tensor, got {kinds}")

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return self._applied(inpt, self._shown)

    def apply_train(self, images: Any, labels: Any = None, *, seed: int = 0) -> Any:
        """Returns poisoned training images, where the paper makes them differently from triggered
        test images; otherwise the same as calling the trigger.

        Args:
            images: As for calling the trigger.
            labels: The true labels, integers (n,); only for triggers whose `requires_train`
                contains ``"labels"``.
            seed: Determines all random numbers, such as the positions of random patches. Ignored
                after `fit`, which has its own.

        Raises:
            ValueError, TypeError, NotFittedError: As for calling the trigger.
        """
        return self._applied(images, self._made(self.method.poisoned, images, labels, seed))

    def apply_cover(self, images: Any, labels: Any = None, *, seed: int = 0) -> Any:
        """Returns cover images: triggered training images that keep their label. Arguments and
        errors are those of `apply_train`, whose result is returned unless the paper makes cover
        images differently."""
        return self._applied(images, self._made(self.method.make_covers, images, labels, seed))

    def fit(
        self, images: Any, labels: Any, *, target: int, source: int | None = None,
        model: torch.nn.Module | None = None, normalize: Normalize = None,
        augment: Augment = None, seed: int = 0,
    ) -> Trigger:  # fmt: skip
        """Optimizes the trigger for a training set, as its attack does.

        Triggers with an empty `requires_train` need no `fit`; for them it only sets the seed.

        Args:
            images: The clean training images, uint8 (n, C, H, W).
            labels: Their labels, integers (n,) in 0..k-1.
            target: The class that triggered images are to be taken for.
            source: The only class whose images are attacked, for source-specific attacks.
            model: The attacker's surrogate, trained on clean images; see `requires_train`. Neither
                its weights nor its mode are changed.
            normalize: What precedes the model; see `backdoor_lab.extract_features`.
            augment: How the victim augments training images, which some attacks imitate: a mapping
                with any of the keys ``crop_padding`` (pixels), ``flip`` (bool) and ``cutout``
                (pixels). None: not at all.
            seed: Determines all random numbers.

        Returns:
            The trigger itself.

        Raises:
            ValueError: An argument has the wrong shape, dtype or range, or a required one is
                missing.
            TypeError: An argument has the wrong type.
        """
        with boundary():
            values, _ = as_images("images", images)
            true = as_labels("labels", labels, len(values))
            pair = class_pair(target, source, class_count(true))
            if source is None and "source" in self.requires_train:
                raise ValueError(f"`source` is missing: {self.name} attacks images of one class")
            self._prepare(attack_context(values, true, *pair, seed, model, normalize, augment))
            self._fitted_by_user, self._seed = True, as_seed(seed)
        return self

    def ready_for(self, context: AttackContext, model: torch.nn.Module | None) -> AttackContext:
        """Fits the trigger, unless its user did, for poisoning the training set of `context`.
        Returns the context to use, which has the surrogate of the fitted trigger. Internal."""
        if not self.requires_train:
            return context
        if not self._fitted_by_user:
            self._prepare(context)
            return context
        self.check_classes(context.target, context.source)
        if model is not None:
            raise ValueError("`model` must be left out, because `trigger` is fitted already")
        fitted = self._context or context
        return replace(
            context, surrogate=fitted.surrogate, device=fitted.device, augment=fitted.augment
        )

    def check_classes(self, target: int, source: int | None) -> None:
        """Raises ValueError if the trigger was fitted for other classes. Internal."""
        if self._fitted_for is None or not self.requires_train:
            return
        pairs = zip(("target", "source"), self._fitted_for, (target, source), strict=True)
        for name, mine, theirs in pairs if self.method.prepared_per_class else ():
            if mine != theirs:
                raise ValueError(f"`{name}` is {theirs}, but `trigger` was fitted for {mine}")

    def check_target(self, target: int) -> None:
        """Raises ValueError if the trigger was fitted for another target. Internal."""
        if self._fitted_for is not None:
            self.check_classes(target, self._fitted_for[1])

    def check_fitted(self) -> None:
        """Raises NotFittedError if `fit` must be called before training images can be made.
        Internal."""
        fitted = not self.requires_train or self._context is not None
        if self.method.needs_preparing:
            fitted = "_state" in self.method.__dict__
        if not fitted:
            from sklearn.exceptions import NotFittedError  # type: ignore[import-untyped]

            needs = ", ".join(sorted(self.requires_train))
            raise NotFittedError(f"{self.name} must be fitted first: call fit with {needs}")

    def _prepare(self, context: AttackContext) -> None:
        if "model" in self.requires_train:
            context.surrogate()  # Raises an error if there is none.
        if self.method.needs_preparing:
            with seeded(context.seed):
                found = returned.tensors(self.method, "prepare", self.method.prepare(context))
            self.method.state = found
        self._context, self._fitted_for = context, (context.target, context.source)
        self._fitted_by_user = False

    def described(self) -> dict[str, Any]:
        """Returns the name and the options of the trigger, as JSON stores them. Internal."""
        found: dict[str, Any] = json.loads(json.dumps({"name": self.name, **self.options}))
        return found

    def extra_repr(self) -> str:
        return repr(self.name)

    def __getstate__(self) -> dict[str, Any]:
        # A context holds the training set and the surrogate, which a data loader does not need.
        state: dict[str, Any] = super().__getstate__()  # type: ignore[misc]
        lost: dict[str, Any] = {"_context": None}
        if not self.method.needs_preparing:
            lost |= {"_fitted_for": None, "_fitted_by_user": False}
        return state | lost

    def _shown(self, images: Tensor) -> Tensor:
        if self.requires:
            self.check_fitted()
        return self.method(images)

    def _made(
        self, make: Callable[[Tensor, Tensor, AttackContext], Tensor], images: Any, labels: Any,
        seed: int,
    ) -> Callable[[Tensor], Tensor]:  # fmt: skip
        def made(values: Tensor) -> Tensor:
            self.check_fitted()
            if labels is None and "labels" in self.requires_train:
                raise ValueError(f"`labels` are missing: {self.name} needs the true labels")
            true = torch.zeros(len(values), dtype=torch.int64)
            if labels is not None:
                true = as_labels("labels", labels, len(values))
            context = self._context
            if context is None:
                known = LabeledImages(values, true, ())
                pair = self._fitted_for or (0, None)
                own = as_seed(seed) if self._seed is None else self._seed
                context = AttackContext(known, *pair, own, partial(present, None))
            if not self.requires_train:
                return make(values, true, context)
            known_classes = len(context.train.classes)
            if known_classes and len(true) and int(true.max()) >= known_classes:
                raise ValueError(
                    f"`labels` must be below {known_classes}, the number of classes in `fit`, got"
                    f" {int(true.max())}"
                )
            with seeded(context.seed):
                return make(values, true, context)

        return made

    def _applied(self, images: Any, make: Callable[[Tensor], Tensor]) -> Any:
        single = isinstance(images, (np.ndarray, Tensor)) and images.ndim == 3
        with boundary():
            if isinstance(images, PIL.Image.Image):
                raise TypeError(
                    "`images` must be a NumPy array or a torch tensor, got a PIL image: put"
                    " torchvision.transforms.v2.PILToTensor() first"
                )
            values, back = as_images("images", images[None] if single else images)
            found = make(values)
        made = back(found[0] if single else found)
        return tv_tensors.wrap(made, like=images) if isinstance(images, _TYPED) else made
