"""Measures data-poisoning backdoor attacks on image classifiers, and defenses against them.

The names in `__all__` are the public interface; they are loaded on first use. Everything else in
this package is internal and may change in any version.
"""

import importlib
from typing import Any

__version__ = "0.2.0"

_HOMES = {
    "PoisonedDataset": "lazy_dataset", "evaluate": "evaluation", "extract_features": "features",
    "get_filter": "filters", "get_repair": "repairs", "get_trigger": "triggers",
    "list_methods": "methods", "poison": "poisoning", "read_results": "results",
}  # fmt: skip
__all__ = [
    "PoisonedDataset", "evaluate", "extract_features", "get_filter", "get_repair", "get_trigger",
    "list_methods", "poison", "read_results",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'backdoor_lab' has no attribute {name!r}")
    return getattr(importlib.import_module(f"backdoor_lab.api.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
