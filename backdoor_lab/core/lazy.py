"""torch, imported when something of it is first used.

Modules that a command loads to check its configuration take torch from here, so that a command
that is refused, or finds everything done, does not wait for it. What they define at the top, as a
constant, a decorator or a base class, must not use it.
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
        """Stands for a module or a class: its attributes are looked up there."""

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
