"""Repairs: remove a backdoor from a model, or train a model without it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from backdoor_lab import returned
from backdoor_lab.api.boundary import boundary, seeded
from backdoor_lab.api.context import Inputs, RecipeChoice, context_of, recipe_of
from backdoor_lab.api.estimators import Estimator, with_defaults
from backdoor_lab.api.methods import Kind
from backdoor_lab.api.networks import Normalize, SelfNormalizing
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.instantiate import build
from backdoor_lab.defenses.networks import ModelRepair

REASONS = {
    "clean": "the repair needs trusted clean images and their labels",
    "images": "the repair trains on the training set",
    "labels": "the repair trains on the training set",
}


class Repair(Estimator):
    """A repair: makes a model without a backdoor from a model that may have one.

    Create one with `backdoor_lab.get_repair`. Parameters are attributes; `get_params`, `set_params`
    and `sklearn.base.clone` work as for any estimator of scikit-learn.

    Attributes:
        requires: The names of the arguments that `fit` needs in addition to `model`: either
            ``"clean"``, or ``"images"`` and ``"labels"``.
        model_: The repaired model, after `fit`: a new module of the type of the given model, on the
            same device, in eval mode.
        notes_: What else the method reports, such as the number of pruned channels; dict. Classes
            are the strings ``"0"``, ``"1"``, ...
    """

    kind: ClassVar[Kind] = "repairs"
    reasons: ClassVar[Mapping[str, str]] = REASONS
    model_: nn.Module
    notes_: dict[str, Any]

    def __init__(self, name: str, *, seed: int = 0, **options: Any) -> None:
        super().__init__(name=name, seed=seed, **options)

    @property
    def requires(self) -> frozenset[str]:
        needs_clean = "clean images" in self._method().requires()
        return frozenset({"clean"} if needs_clean else {"images", "labels"})

    def fit(
        self, model: nn.Module, images: Any = None, labels: Any = None, *,
        clean: tuple[Any, Any] | None = None, normalize: Normalize = None,
        recipe: RecipeChoice = None,
    ) -> Repair:  # fmt: skip
        """Repairs a copy of a model.

        Arguments that are not in `requires` are not used for the repair.

        Args:
            model: The model to repair: it returns logits (b, k). Neither its weights nor its mode
                are changed. Repairs that train a new model call ``reset_parameters()`` of all
                modules of a copy.
            images: The training images, uint8 (n, C, H, W), poison included.
            labels: The training labels, integers (n,) in 0..k-1.
            clean: A pair ``(images, labels)`` of trusted clean images, uint8 (m, C, H, W), with
                their true labels, integers (m,).
            normalize: What precedes the model; see `backdoor_lab.extract_features`.
            recipe: How the model was trained: the name of a file in ``conf/recipe``, or a mapping
                of values that replace those of ``conf/recipe/report.yaml``, such as
                ``{"epochs": 30, "flip": False}``. It determines the augmentation and, unless the
                method sets its own, the optimizer's hyperparameters.

        Returns:
            The repair itself, with `model_` and `notes_`.

        Raises:
            ValueError: An argument has the wrong shape, dtype or range, a required one is missing,
                or the method cannot repair this kind of model.
            TypeError: An argument has the wrong type.
        """
        with boundary():
            method = self._method()
            self.check_given(self.requires, clean=clean, images=images, labels=labels)
            method.check_optimizer(recipe_of(recipe).optimizer)
            inputs = Inputs(model, normalize, recipe, images, labels, clean)
            context = context_of(inputs, self.seed)
            with seeded(context.seed):
                made = method.repair(context)
            network, notes = returned.repaired(method, "repair", made, context.network())
        assert isinstance(network, SelfNormalizing)
        self.model_, self.notes_ = _like(network.model, model), notes
        return self

    def check(self) -> None:
        super().check()
        self._method()

    def _method(self) -> ModelRepair:
        config = self.config()
        del config["seed"]
        method = build("defense", config, ModelRepair)
        if getattr(method, "data", None) is not None:
            raise ConfigError(
                "`data` is an option of the command line: pass these images as `clean`"
            )
        return method


def get_repair(name: str, /, *, seed: int = 0, **options: Any) -> Repair:
    """Returns a repair by name.

    Args:
        name: One of ``list_methods("repairs")``. Papers and options:
            ``backdoor_lab/defenses/README.md`` and ``conf/defense``.
        seed: Determines all random numbers; it corresponds to the seed of the command line, which
            gives the same bits for the same inputs.
        **options: Values that replace the defaults in ``conf/defense/<name>.yaml``.

    Raises:
        ValueError: The name or an option is unknown, or the repair rejects a value.

    Example:
        >>> import backdoor_lab as bl
        >>> repair = bl.get_repair("fine_pruning", epochs=2)
        >>> repair.get_params()["epochs"], sorted(repair.requires)
        (2, ['clean'])
    """
    with boundary():
        return Repair(name, seed=seed, **with_defaults("repairs", name, options))


def _like(made: nn.Module, model: nn.Module) -> nn.Module:
    """Returns `made` in eval mode; its parameters require gradients where those of `model` do."""
    for new, old in zip(made.parameters(), model.parameters(), strict=True):
        new.requires_grad_(old.requires_grad)
        new.grad = None
    return made.eval()
