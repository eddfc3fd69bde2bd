"""Provides torch, which is imported on first use.

Modules that are loaded to check a configuration import torch from here, so that a command that is
rejected, or that has nothing to compute, does not wait for the import. Module-level code
(constants, decorators, base classes) must not use torch.
"""

from __future__ import annotations

from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

__all__ = ["F", "Tensor", "nn", "torch"]

if TYPE_CHECKING:
    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn
else:

    class _Lazy:
        """A placeholder for a module or class; attributes are resolved on first use."""

        def __init__(self, name: str) -> None:
            self._name = name

        def __getattr__(self, attribute: str) -> Any:
            if "_found" not in self.__dict__:
                self._found = resolve_name(self._name)
            return getattr(self._found, attribute)

    torch = _Lazy("torch")
    nn = _Lazy("torch.nn")
    F = _Lazy("torch.nn.functional")
    Tensor = _Lazy("torch:Tensor")
