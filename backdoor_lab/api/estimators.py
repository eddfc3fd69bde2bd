"""What filters and repairs share: parameters with scikit-learn's conventions."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from sklearn.base import BaseEstimator  # type: ignore[import-untyped]

from backdoor_lab.api.arrays import as_seed
from backdoor_lab.api.boundary import boundary
from backdoor_lab.api.methods import Kind, defaults, plain
from backdoor_lab.core.errors import ConfigError, unknown
from backdoor_lab.core.instantiate import NOT_ARGUMENTS, OPTIONS


class Estimator(BaseEstimator):
    """Base class of filters and repairs. Each parameter is an attribute, as in scikit-learn.

    Attributes:
        name: The name of the method.
        seed: Determines all random numbers.
    """

    kind: ClassVar[Kind]
    reasons: ClassVar[Mapping[str, str]]
    name: str
    seed: int

    def __init__(self, **params: Any) -> None:
        for name in params:
            if name not in ("name", "seed") and hasattr(type(self), name):
                raise ValueError(f"option `{name}` is not known")
        self._names = tuple(params)
        self._set(params)
        with boundary():
            self.check()

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Returns all parameters with their values. `deep` has no effect."""
        return {name: getattr(self, name) for name in self._names}

    def set_params(self, **params: Any) -> Any:
        """Changes parameters. If a value is invalid, none is changed.

        Returns:
            The estimator itself.

        Raises:
            ValueError: A parameter is unknown, or its value is invalid.
        """
        before = self.get_params()
        with boundary():
            for name in params:
                if name not in before:
                    raise unknown(f"parameter of {self.name}:", name, before)
            self._set(params)
            try:
                self.check()
            except (ConfigError, TypeError, ValueError):
                self._set(before)
                raise
        return self

    def _set(self, params: dict[str, Any]) -> None:
        for name, value in plain(params).items():
            setattr(self, name, value)

    def check(self) -> None:
        """Raises ConfigError if a parameter has an invalid value. Internal."""
        as_seed(self.seed)

    def check_given(self, required: Iterable[str], **given: object) -> None:
        """Raises ValueError if one of the `required` arguments of `fit` is None. Internal."""
        for name in sorted(required):
            if given[name] is None:
                raise ValueError(f"`{name}` is missing: {self.reasons[name]}")

    def config(self) -> dict[str, Any]:
        """Returns the parameters as `instantiate.build` expects them. Internal."""
        target = defaults(self.kind, self.name)["_target_"]
        return {"_target_": target, **self.get_params()}


def with_defaults(kind: Kind, name: object, options: dict[str, Any]) -> dict[str, Any]:
    """Returns `options` and, for all others, the values in the method's configuration file or, if
    it does not have them, in the constructor of its class."""
    values = defaults(kind, name)
    module, _, class_name = str(values["_target_"]).rpartition(".")
    found = inspect.signature(getattr(importlib.import_module(module), class_name)).parameters
    known = {key: each.default for key, each in found.items() if key != OPTIONS}
    given = {key: value for key, value in values.items() if key not in NOT_ARGUMENTS}
    return known | given | options
