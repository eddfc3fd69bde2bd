"""Clean accuracy and attack success rate of a user's model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from backdoor_lab.analysis.intervals import wilson
from backdoor_lab.api.arrays import (
    Back,
    as_batch_size,
    as_images,
    as_labels,
    as_tensor,
    class_index,
)
from backdoor_lab.api.boundary import boundary
from backdoor_lab.api.inference import inference
from backdoor_lab.api.named_triggers import as_trigger
from backdoor_lab.api.networks import Normalize, dtype_of, normalizer
from backdoor_lab.api.triggers import Trigger
from backdoor_lab.attacks import base
from backdoor_lab.attacks.plan import PoisonSpec, asr_test_set
from backdoor_lab.numerics.confusion import confusion_matrix

AsrOn = Literal["not_target", "source", "all"]
Images = npt.NDArray[np.uint8] | Tensor


@dataclass(frozen=True)
class Rate:
    """A share of images with its confidence interval; ``float(rate)`` is its value.

    Attributes:
        value: The share, 0..1; NaN if there are no images.
        low: Lower end of the Wilson interval.
        high: Upper end of the Wilson interval.
        n: Number of images.
    """

    value: float
    low: float
    high: float
    n: int

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        if not self.n:
            return "no images"
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}], n={self.n}"

    def __format__(self, spec: str) -> str:
        return format(self.value, spec) if spec else str(self)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The result of `backdoor_lab.evaluate`.

    Attributes:
        nat: Accuracy on clean images (natural accuracy).
        asr: Attack success rate: the share of triggered images classified as the target.
        clean_rate: The share of the same images classified as the target without the trigger.
        per_class: Accuracy on the clean images of each class, float64 (k,); NaN for a class
            without images.
        confusion: Number of clean images by true class (rows) and predicted class (columns), int64
            (k, k).
        confidence: Confidence level of the intervals.
    """

    nat: Rate
    asr: Rate
    clean_rate: Rate
    per_class: npt.NDArray[np.float64]
    confusion: npt.NDArray[np.int64]
    confidence: float

    def __str__(self) -> str:
        lines = [
            f"clean accuracy       {self.nat}",
            f"attack success rate  {self.asr}",
            f"without the trigger  {self.clean_rate}",
            f"intervals: {100 * self.confidence:g} % (Wilson)",
        ]
        if not np.isnan(self.per_class).all():
            worst = int(np.nanargmin(self.per_class))
            lines.append(f"lowest accuracy: {self.per_class[worst]:.4f} (class {worst})")
        return "\n".join(lines)


def evaluate(
    model: nn.Module | Callable[[Tensor], Any], images: Images, labels: Any,
    trigger: Callable[[Any], Any] | str, *, target: int, source: int | None = None,
    asr_on: AsrOn | None = None, confidence: float = 0.95, batch_size: int = 256,
    device: str | torch.device | None = None, normalize: Normalize = None,
) -> Evaluation:  # fmt: skip
    """Measures a model on clean and on triggered test images.

    A module runs in eval mode and without gradients; afterwards its modes and device are as before.

    Args:
        model: A module or a function that maps a float tensor (b, C, H, W) to scores (b, k), one
            column per class, as a tensor or a NumPy array.
        images: Clean test images, uint8 (n, C, H, W) with C 1 or 3, a NumPy array or a tensor.
        labels: Their labels, integers (n,) in 0..k-1.
        trigger: A trigger of `backdoor_lab.get_trigger`, its name, an object of your own subclass
            of `backdoor_lab.attacks.base.Trigger`, or a function that returns a triggered copy of
            images, uint8 of the same shape. A function gets arrays of the same kind as `images`, a
            module gets tensors.
        target: The class that triggered images are to be taken for.
        source: The class whose images are attacked, for source-specific attacks.
        asr_on: The images that the attack success rate is measured on: ``"not_target"`` (all but
            those of the target class), ``"source"`` or ``"all"``. None: ``"source"`` if `source`
            is given, otherwise ``"not_target"``.
        confidence: Confidence level of the intervals, between 0 and 1.
        batch_size: Number of images per forward pass.
        device: Where to run; a module is moved there and back. None: where the model is, or where
            `images` are if the model is a function.
        normalize: What precedes the model; see `backdoor_lab.extract_features`.

    Raises:
        ValueError: The model returns NaN (the message names the first row) or something other than
            (b, k), the trigger was fitted for another target, or an argument has a wrong dtype,
            shape or range.
        TypeError: An argument has a wrong type.

    Example:
        >>> import backdoor_lab as bl, torch
        >>> def bright(x):  # class 1 if the brightest pixel is at least 0.9
        ...     top = x.amax(dim=(1, 2, 3))
        ...     return torch.stack([0.9 - top, top - 0.9], dim=1)
        >>> images = torch.zeros(20, 3, 8, 8, dtype=torch.uint8)
        >>> labels = torch.zeros(20, dtype=torch.int64)
        >>> found = bl.evaluate(bright, images, labels, bl.get_trigger("pixel"), target=1)
        >>> print(found.asr)
        1.0000 [0.8389, 1.0000], n=20
    """
    with boundary():
        if not callable(model):
            raise TypeError(f"`model` must be a module or a function, got {type(model).__name__}")
        if isinstance(target, bool) or not isinstance(target, (int, np.integer)):
            raise TypeError(f"`target` must be a class number, got {target!r}")
        if isinstance(trigger, (str, base.Trigger)):
            trigger = as_trigger(trigger)
        if isinstance(trigger, Trigger):
            trigger.check_target(target)
        if not callable(trigger):
            raise TypeError(
                f"`trigger` must be a trigger or a function, got {type(trigger).__name__}"
            )
        values, back = as_images("images", images)
        if not len(values):
            raise ValueError("`images` must have at least one row")
        true = as_labels("labels", labels, len(values))
        level = _level(confidence)
        plan = _plan(target, source, asr_on)
        size = as_batch_size(batch_size)

        def check_classes(k: int) -> None:
            class_index("target", target, k)
            if source is not None:
                class_index("source", source, k)
            if int(true.max()) >= k:
                row = int(true.ge(k).nonzero()[0])
                raise ValueError(
                    f"`labels` must be smaller than {k}, the number of columns that `model`"
                    f" returns, got {int(true[row])} in row {row}"
                )

        scorer = _Scorer(model, normalizer(normalize), size, check_classes)
        with inference(model, device, images) as scorer.device:
            predicted = scorer.predict(values.__getitem__, torch.arange(len(values)))
            where = asr_test_set(true, plan)
            shown = scorer.predict(lambda rows: _triggered(trigger, values[rows], back), where,
                                   " with the trigger")  # fmt: skip
    confusion = confusion_matrix(predicted, true, scorer.classes)
    totals = confusion.sum(dim=1).double()
    return Evaluation(
        nat=_rate(predicted.eq(true), level), asr=_rate(shown.eq(target), level),
        clean_rate=_rate(predicted[where].eq(target), level),
        per_class=(confusion.diagonal().double() / totals).numpy(), confusion=confusion.numpy(),
        confidence=level,
    )  # fmt: skip


class _Scorer:
    """Predicts classes and checks the scores of a model. `check` is called once, with the number of
    classes."""

    def __init__(
        self, model: Callable[[Tensor], Any], prepare: Callable[[Tensor], Tensor], size: int,
        check: Callable[[int], None],
    ) -> None:  # fmt: skip
        self.model, self.prepare, self.size, self.check = model, prepare, size, check
        self.device = torch.device("cpu")
        self.classes = 0

    def predict(self, images: Callable[[Tensor], Tensor], rows: Tensor, how: str = "") -> Tensor:
        """Returns the predicted classes, int64 (m,), of the images with indices `rows`, int64 (m,).
        `how` says how these are shown, for errors."""
        parts = [rows[:0]]
        for chosen in rows.split(self.size) if len(rows) else ():
            batch = self.prepare(images(chosen).to(self.device)).to(dtype_of(self.model))
            scores = self._checked(self.model(batch), len(chosen))
            bad = scores.isnan().any(dim=1)
            if bad.any():
                row = int(chosen[int(bad.nonzero()[0])])
                raise ValueError(f"`model` returns NaN for row {row} of `images`{how}")
            parts.append(scores.argmax(dim=1).cpu())
        return torch.cat(parts)

    def _checked(self, output: Any, n: int) -> Tensor:
        found = output if isinstance(output, Tensor) else as_tensor("model(images)", output)[0]
        if found.is_complex():
            raise ValueError("`model` must return real numbers, got complex ones")
        k = found.shape[1] if found.ndim == 2 else 0
        if len(found.shape) != 2 or len(found) != n or k < 2 or self.classes not in (0, k):
            wanted = self.classes or "k"
            raise ValueError(
                f"`model` must return shape ({n}, {wanted}) for {n} images, one column per class"
                f" and at least two, got {tuple(found.shape)}"
            )
        if not self.classes:
            self.check(k)
            self.classes = k
        return found


def _triggered(trigger: Callable[[Any], Any], images: Tensor, back: Back) -> Tensor:
    given = images if isinstance(trigger, nn.Module) else back(images)
    made, _ = as_images("trigger(images)", trigger(given))
    if made.shape != images.shape:
        raise ValueError(
            f"`trigger(images)` must have the shape of `images`, {tuple(images.shape)}, got"
            f" {tuple(made.shape)}"
        )
    return made


def _plan(target: int, source: int | None, asr_on: AsrOn | None) -> PoisonSpec:
    wanted = asr_on or ("not_target" if source is None else "source")
    poison_from = "not_target" if source is None else "source"
    return PoisonSpec(target, source, 0.0, poison_from=poison_from, asr_on=wanted)


def _level(confidence: object) -> float:
    if isinstance(confidence, bool) or not isinstance(confidence, (int, float, np.number)):
        raise TypeError(f"`confidence` must be a number, got {type(confidence).__name__}")
    found = float(confidence)
    # The largest numbers below 1 have no finite quantile.
    if not 0 < found < 1 - 1e-12:
        raise ValueError(f"`confidence` must satisfy 0 < confidence < 1, got {found}")
    return found


def _rate(hits: Tensor, level: float) -> Rate:
    n, count = len(hits), int(hits.sum())
    if not n:
        return Rate(math.nan, math.nan, math.nan, 0)
    return Rate(count / n, *wilson(count / n, n, level), n)
