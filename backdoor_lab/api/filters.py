"""Filters: which training images are suspicious, and which are to be kept."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, ClassVar

import torch
from sklearn import config_context  # type: ignore[import-untyped]
from torch import Tensor, nn

from backdoor_lab.api.arrays import (
    as_count,
    as_features,
    as_labels,
    as_seed,
    as_tensor,
    class_index,
)
from backdoor_lab.api.boundary import boundary, seeded
from backdoor_lab.api.context import Inputs, RecipeChoice, context_of, pair
from backdoor_lab.api.estimators import Estimator, with_defaults
from backdoor_lab.api.methods import Kind, defaults
from backdoor_lab.api.networks import Normalize
from backdoor_lab.core import streams
from backdoor_lab.core.instantiate import Shared, build
from backdoor_lab.core.rng import derive
from backdoor_lab.core.types import Features
from backdoor_lab.defenses.base import DefenderKnowledge, SampleFilter
from backdoor_lab.defenses.context import DefenseContext
from backdoor_lab.defenses.options import DEFAULTS, OPTION_KEYS, FilterOptions

SMALLEST = 1e-100
"""Smaller numbers in float64 features count as 0."""
ARGUMENTS = {
    "target": ("target",), "epsilon": ("n_poisoned",), "clean": ("clean",),
    "context": ("images", "model"), "clean images": ("clean",),
}  # fmt: skip
"""Maps what a defense requires to arguments of `Filter.fit`."""
REASONS = {
    "target": "with filter_scope='target', the filter must know the class to examine",
    "n_poisoned": "the budget is a multiple of the number of poisoned images; set removal_budget,"
    " for example to '15%', if this number is unknown",
    "clean": "the filter compares the training images with clean ones",
    "model": "the filter examines images with the model that was trained on them",
    "images": "the filter examines images, not features",
}


class Filter(Estimator):
    """A filter: scores training images and removes those with the highest scores.

    Create one with `backdoor_lab.get_filter`. Parameters are attributes; `get_params`, `set_params`
    and `sklearn.base.clone` work as for any estimator of scikit-learn.

    Attributes:
        requires: The names of the optional arguments that `fit` needs: any of ``"target"``,
            ``"n_poisoned"``, ``"clean"``, ``"model"`` and ``"images"``.
        scores_: float64 (n,), after `fit`. Higher is more suspicious; NaN where the class was not
            examined. A NumPy array or a tensor on the same device, as `features`.
        keep_: bool (n,), of the same kind: False for images to remove.
        flagged_classes_: The classes, in ascending order, that were filtered: with
            ``filter_scope="target"`` the target, with ``"all"`` every class, with ``"suspicious"``
            those that the filter found suspicious.
        notes_: What else the method reports, such as thresholds; dict. Classes are the strings
            ``"0"``, ``"1"``, ...
    """

    kind: ClassVar[Kind] = "filters"
    reasons: ClassVar[Mapping[str, str]] = REASONS
    scores_: Any
    keep_: Any
    flagged_classes_: list[int]
    notes_: dict[str, Any]

    def __init__(
        self, name: str, *, filter_scope: str = "target", removal_budget: str = "1.5eps",
        max_removed: str | None = None, seed: int = 0, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(
            name=name, filter_scope=filter_scope, removal_budget=removal_budget,
            max_removed=max_removed, seed=seed, **options,
        )  # fmt: skip

    @property
    def requires(self) -> frozenset[str]:
        return frozenset(name for need in self._method().requires() for name in ARGUMENTS[need])

    def fit(
        self, features: Any, labels: Any, *, target: int | None = None,
        n_poisoned: int | None = None, clean: tuple[Any, Any] | None = None,
        model: nn.Module | None = None, images: Any = None, normalize: Normalize = None,
        recipe: RecipeChoice = None,
    ) -> Filter:  # fmt: skip
        """Scores the training images and decides which to keep.

        Arguments that are not in `requires` are ignored.

        Args:
            features: Features of the training images, floating-point (n, d), as a NumPy array or a
                tensor on any device; see `backdoor_lab.extract_features`. They are used as float32
                or, if they have that type, as float64. May be None for filters that require
                ``"images"``, which do not use features.
            labels: The training labels, integers (n,) in 0..k-1. Classes without images are
                allowed.
            target: The class to examine.
            n_poisoned: The number of poisoned images in each class that contains any, or an upper
                bound of it.
            clean: A pair ``(x, labels)`` of trusted clean data with true labels: ``x`` are images
                uint8 (m, C, H, W) if the filter requires ``"images"``, otherwise features
                floating-point (m, d) at the same layer as `features`.
            model: The model that was trained on the images: it returns logits (b, k). It is not
                changed. Filters that train a new model call ``reset_parameters()`` of all modules
                of a copy.
            images: The training images, uint8 (n, C, H, W).
            normalize: What precedes the model; see `backdoor_lab.extract_features`.
            recipe: How the model was trained, for filters that train models: the name of a file in
                ``conf/recipe``, or a mapping of values that replace those of
                ``conf/recipe/report.yaml``, such as ``{"epochs": 30, "flip": False}``.

        Returns:
            The filter itself, with the attributes that end in an underscore.

        Raises:
            ValueError: An argument has the wrong shape, dtype or range, features are not finite, a
                required argument is missing, or the budget would remove a whole class.
            TypeError: An argument has the wrong type.

        Example:
            >>> import backdoor_lab as bl, numpy as np
            >>> features = np.random.default_rng(0).normal(size=(100, 5))
            >>> features[:10] += 8  # poison
            >>> found = bl.get_filter("spectral").fit(
            ...     features, np.zeros(100, int), target=0, n_poisoned=10
            ... )
            >>> int((~found.keep_).sum()), int((~found.keep_[:10]).sum())
            (15, 10)
        """
        with boundary():
            method = self._method()
            self.check_given(
                self.requires, target=target, n_poisoned=n_poisoned, clean=clean, model=model,
                images=images,
            )  # fmt: skip
            needs = method.requires()
            on_images = "context" in needs
            of = "images" if on_images and features is None else "features"
            rows, back = as_tensor(of, images if of == "images" else features)
            values = torch.zeros(len(rows), 1) if of == "images" else _values(of, features)
            given = as_labels("labels", labels, len(values), of)
            context = held_out = None
            if on_images:
                both = clean if "clean images" in needs else None
                inputs = Inputs(model, normalize, recipe, images, given, both)  # type: ignore[arg-type]
                context = context_of(inputs, self.seed)
            if "clean" in needs:
                held_out = _clean_features(clean, values.shape[1])
            known = self._known(needs, given, target, n_poisoned, held_out, context)
            # Methods that use scikit-learn expect arrays from its transformers.
            usual = config_context(transform_output="default")
            with usual, seeded(known.seed) if on_images else nullcontext():
                result = method(Features(values, given), known)
        self.scores_, self.keep_ = back(result.scores), back(result.keep)
        self.notes_ = dict(result.notes)
        flagged: Any = result.notes["classes"]
        self.flagged_classes_ = sorted(map(int, flagged))
        return self

    def check(self) -> None:
        super().check()
        self._method()

    def _method(self) -> SampleFilter:
        config = self.config()
        del config["seed"]
        given = {key: config.pop(key, getattr(DEFAULTS, key)) for key in OPTION_KEYS}
        shared = Shared(given, FilterOptions)
        return build("defense", config, SampleFilter, shared)

    def _known(
        self, needs: list[str], labels: Tensor, target: int | None, n_poisoned: int | None,
        clean: Features | None, context: DefenseContext | None,
    ) -> DefenderKnowledge:  # fmt: skip
        """Returns what the filter may know: as on the command line, only what it requires."""
        n = len(labels)
        count = len(context.classes) if context is not None else int(labels.max()) + 1
        chosen = epsilon = None
        if "target" in needs:
            chosen = class_index("target", target, count)
            if not bool((labels == chosen).any()):
                raise ValueError(f"`target` must occur in `labels`, got {chosen}")
        if "epsilon" in needs:
            epsilon = as_count("n_poisoned", n_poisoned, n)
        seed = derive(as_seed(self.seed), streams.FILTER)
        classes = tuple(map(str, range(count)))
        return DefenderKnowledge(classes, chosen, epsilon, seed, clean, context)


def get_filter(
    name: str, /, *, filter_scope: str | None = None, removal_budget: str | None = None,
    max_removed: str | None = None, seed: int = 0, **options: Any,
) -> Filter:  # fmt: skip
    """Returns a filter by name.

    Args:
        name: One of ``list_methods("filters")``. Papers and options:
            ``backdoor_lab/defenses/README.md`` and ``conf/defense``.
        filter_scope: Which classes are examined: ``"target"``, ``"all"``, or ``"suspicious"``,
            those that the filter itself finds suspicious. Default: the value in
            ``conf/defense/<name>.yaml``, otherwise ``"target"``.
        removal_budget: How many images are removed from an examined class: ``"1.5eps"`` (1.5 times
            `n_poisoned`), ``"15%"`` of the class, ``"p85"`` (scores above that percentile),
            ``"100"`` images, or ``"auto"``: the method's own rule, or Otsu's threshold. Default:
            the value in ``conf/defense/<name>.yaml``, otherwise ``"1.5eps"``.
        max_removed: An upper bound in one of these forms except ``"auto"``; None: no bound.
        seed: Determines all random numbers; it corresponds to the seed of the command line, which
            gives the same bits for the same inputs.
        **options: Values that replace the defaults in ``conf/defense/<name>.yaml``; also `center`,
            whether spectral filters subtract the class mean.

    Raises:
        ValueError: The name or an option is unknown, or the filter rejects a value.

    Example:
        >>> import backdoor_lab as bl
        >>> found = bl.get_filter("spectral", removal_budget="15%")
        >>> found.get_params()["removal_budget"], sorted(found.requires)
        ('15%', ['target'])
    """
    with boundary():
        protocol = defaults("protocols", "group13")
        values = with_defaults("filters", name, options)
        given = {
            "filter_scope": filter_scope, "removal_budget": removal_budget,
            "max_removed": max_removed,
        }  # fmt: skip
        values |= {key: value for key, value in given.items() if value is not None}
        shared = {key: values.pop(key, protocol[key]) for key in OPTION_KEYS}
        return Filter(name, seed=seed, **shared, **values)


def _values(name: str, features: object) -> Tensor:
    """Returns features as float32 or, if they have that precision, float64."""
    values = as_features(name, features)
    if values.dtype != torch.float64:
        return values.float()
    # Methods compute squares and their sums, which must neither overflow nor underflow.
    large = values.abs().amax(dim=1) > torch.finfo(torch.float32).max
    if large.any():
        where = int(large.nonzero()[0])
        raise ValueError(f"`{name}` must be between -3.4e38 and 3.4e38, but row {where} is not")
    return torch.where(values.abs() < SMALLEST, 0.0, values)


def _clean_features(clean: object, d: int) -> Features:
    first, labels = pair("clean", clean)
    values = _values("clean", first)
    if values.shape[1] != d:
        raise ValueError(
            f"`clean` must have as many columns as `features` ({d}), got {values.shape[1]}"
        )
    return Features(values, as_labels("clean", labels, len(values)))
