"""Triggers as transforms of torchvision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import NotFittedError
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from backdoor_lab.api.arrays import as_images, as_labels, as_tensor, class_index
from backdoor_lab.api.boundary import boundary
from backdoor_lab.api.methods import defaults
from backdoor_lab.api.networks import Normalize, SelfNormalizing
from backdoor_lab.attacks import base
from backdoor_lab.attacks.base import AttackContext
from backdoor_lab.core import validation
from backdoor_lab.core.instantiate import build
from backdoor_lab.core.types import LabeledImages


def _is_plain_tensor(value: object) -> bool:
    return type(value) is Tensor


class Trigger(v2.Transform):
    """A trigger: calling it returns triggered copies of images.

    Create one with `backdoor_lab.get_trigger`. Inside `torchvision.transforms.v2.Compose`, it
    must come before images are scaled to floats. Like any transform of torchvision, it applies to
    the images of a sample and passes labels through.

    Attributes:
        name: The name given to `get_trigger`.
        requires: What `fit` needs before the trigger can be applied: any of ``"images"``,
            ``"labels"``, ``"target"``, ``"source"`` and ``"model"``. Empty for most triggers,
            which can be applied at once.
        requires_train: The same for `apply_train` and `apply_cover`, which are optimized for a
            training set by some attacks whose trigger itself is fixed.
    """

    _transformed_types = (tv_tensors.Image, _is_plain_tensor)

    def __init__(self, name: str, method: base.Trigger) -> None:
        super().__init__()
        self.name, self.method = name, method
        needs_model = {"model"} if method.uses_surrogate else set()
        fitted = {"images", "labels", "target"} | needs_model
        fitted |= {"source"} if method.source_specific else set()
        self.requires = frozenset(fitted if method.needs_preparing else ())
        optimized = method.needs_preparing or method.uses_surrogate
        self.requires_train = frozenset(fitted if optimized else ())
        self._context: AttackContext | None = None

    def forward(self, *inputs: Any) -> Any:
        """Returns triggered copies of images.

        Args:
            *inputs: One array of images, uint8 (n, C, H, W) or (C, H, W) with C 1 or 3, as a NumPy
                array or a tensor on any device. Or, as in any transform of torchvision, several
                values or a structure of values, of which the image tensors are changed.

        Returns:
            The same structure; images keep their kind, shape, dtype and device.

        Raises:
            ValueError: The images have another dtype or shape, or the trigger does not fit them.
            TypeError: There is no array.
            NotFittedError: The trigger must be fitted first; see `requires`.
        """
        if len(inputs) == 1 and not isinstance(inputs[0], (dict, list, tuple)):
            return self._applied(inputs[0], self._shown)
        return super().forward(*inputs)

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
        model: torch.nn.Module | None = None, normalize: Normalize = None, seed: int = 0,
    ) -> Trigger:  # fmt: skip
        """Optimizes the trigger for a training set, as its attack does.

        Triggers with an empty `requires_train` need no `fit`; for them it only sets the seed.

        Args:
            images: The clean training images, uint8 (n, C, H, W).
            labels: Their labels, integers (n,) in 0..k-1.
            target: The class that triggered images are to be taken for.
            source: The only class whose images are attacked, for source-specific attacks.
            model: The attacker's surrogate, trained on clean images; see `requires`. Neither its
                weights nor its mode are changed.
            normalize: What precedes the model; see `backdoor_lab.extract_features`.
            seed: Determines all random numbers.

        Returns:
            The trigger itself.

        Raises:
            ValueError: An argument has the wrong shape, dtype or range, or a required one is
                missing.
        """
        with boundary():
            self._context = self.context(images, labels, target, source, model, normalize, seed)
            if self.method.needs_preparing:
                self.method.state = self.method.prepare(self._context)
        return self

    def context(
        self, images: Any, labels: Any, target: int, source: int | None,
        model: torch.nn.Module | None, normalize: Normalize, seed: int,
    ) -> AttackContext:  # fmt: skip
        """Returns what an attack may use; see `fit`. Internal."""
        values, _ = as_images("images", images)
        true = as_labels("labels", labels, len(values))
        classes = max(int(true.max()) + 1 if len(true) else 1, _next(target), _next(source))
        pair = class_index("target", target, classes), source
        if source is not None:
            class_index("source", source, classes)
        elif "source" in self.requires_train:
            raise ValueError(f"`source` is missing: {self.name} attacks images of one class")
        if model is None and "model" in self.requires_train:
            raise ValueError(f"`model` is missing: {self.name} needs a surrogate trained on"
                             " clean images")  # fmt: skip
        network = None if model is None else SelfNormalizing.copy_of(model, normalize)
        train = LabeledImages(values, true, tuple(map(str, range(classes))))
        device = torch.device("cpu") if network is None else network.device
        whole = validation.whole("seed", seed, low=0, below=2**63)
        return AttackContext(train, *pair, whole, lambda: _present(network), device)

    def extra_repr(self) -> str:
        return repr(self.name)

    def __getstate__(self) -> dict[str, Any]:
        # A context holds the training set and functions, neither of which a data loader needs.
        return {**super().__getstate__(), "_context": None}  # type: ignore[misc]

    def _shown(self, images: Tensor) -> Tensor:
        if self.requires and "_state" not in self.method.__dict__:
            raise self._unfitted()
        return self.method(images)

    def _made(
        self, make: Callable[[Tensor, Tensor, AttackContext], Tensor], images: Any, labels: Any,
        seed: int,
    ) -> Callable[[Tensor], Tensor]:  # fmt: skip
        def made(values: Tensor) -> Tensor:
            if self.requires_train and self._context is None:
                raise self._unfitted()
            if labels is None and "labels" in self.requires_train:
                raise ValueError(f"`labels` are missing: {self.name} needs the true labels")
            true = torch.zeros(len(values), dtype=torch.int64)
            if labels is not None:
                true = as_labels("labels", labels, len(values))
            context = self._context
            if context is None:
                whole = validation.whole("seed", seed, low=0, below=2**63)
                known = LabeledImages(values, true, ())
                context = AttackContext(known, 0, None, whole, lambda: _present(None))
            return make(values, true, context)

        return made

    def _applied(self, images: Any, make: Callable[[Tensor], Tensor]) -> Any:
        single = isinstance(images, (np.ndarray, Tensor)) and images.ndim == 3
        with boundary():
            if not isinstance(images, (np.ndarray, Tensor)):
                as_tensor("images", images)
            values, back = as_images("images", images[None] if single else images)
            found = make(values)
        made = back(found[0] if single else found)
        return tv_tensors.wrap(made, like=images) if isinstance(images, tv_tensors.Image) else made

    def _unfitted(self) -> NotFittedError:
        needs = ", ".join(sorted(self.requires_train))
        return NotFittedError(f"{self.name} must be fitted first: call fit with {needs}")


def get_trigger(name: str, /, **options: Any) -> Trigger:
    """Returns a trigger by name.

    Args:
        name: One of ``list_methods("triggers")``. Papers and options:
            ``backdoor_lab/attacks/README.md`` and ``conf/trigger``.
        **options: Values that replace the defaults in ``conf/trigger/<name>.yaml``.

    Raises:
        ValueError: The name or an option is unknown, or the trigger rejects a value.

    Example:
        >>> import backdoor_lab as bl, numpy as np
        >>> trigger = bl.get_trigger("pixel", color=200)
        >>> int(trigger(np.zeros((3, 8, 8), np.uint8)).max())
        200
    """
    with boundary():
        config = defaults("triggers", name) | options
        return Trigger(name, build("trigger", config, base.Trigger))  # type: ignore[type-abstract]


def _present(network: SelfNormalizing | None) -> SelfNormalizing:
    if network is None:
        raise ValueError("`model` is missing: the attack needs a surrogate; call fit first")
    return network


def _next(label: object) -> int:
    return int(label) + 1 if isinstance(label, (int, np.integer)) and label >= 0 else 1
