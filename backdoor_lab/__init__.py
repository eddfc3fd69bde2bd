"""Measures data-poisoning backdoor attacks on image classifiers, and defenses against them.

The names in `__all__` are the public interface; they are loaded on first use. The classes of their
results, such as `PoisonResult`, can be imported from here too. Everything else in this package is
internal and may change in any version.
"""

import importlib
from typing import Any

__version__ = "0.2.0"

_HOMES = {
    "PoisonedDataset": "lazy_dataset", "evaluate": "evaluation", "extract_features": "features",
    "get_filter": "filters", "get_repair": "repairs", "get_trigger": "named_triggers",
    "list_methods": "methods", "poison": "poisoning", "read_results": "results",
    "scan_dataset": "scanning",
}  # fmt: skip
_CLASSES = {
    "Evaluation": "evaluation", "Filter": "filters", "PoisonResult": "poisoning",
    "Rate": "evaluation", "Repair": "repairs", "Trigger": "triggers",
}  # fmt: skip
__all__ = [
    "PoisonedDataset", "evaluate", "extract_features", "get_filter", "get_repair", "get_trigger",
    "list_methods", "poison", "read_results", "scan_dataset",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    home = (_HOMES | _CLASSES).get(name)
    if home is None:
        raise AttributeError(f"module 'backdoor_lab' has no attribute {name!r}")
    import random

    # Some libraries draw from Python's global generator when they are imported.
    state = random.getstate()
    try:
        return getattr(importlib.import_module(f"backdoor_lab.api.{home}"), name)
    finally:
        random.setstate(state)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_CLASSES})
