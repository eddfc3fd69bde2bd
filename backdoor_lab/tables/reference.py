"""The results that the published report states: CIFAR-10, ResNet18, spectral filter.

"Backdoor attack and defense in image classification" (Group 13), Tables 1 and 2. Values are in
percent, except for `pois_left`, a number of images.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from backdoor_lab.results.values import words

COLUMNS = ("nat1", "asr1", "pois_left", "nat2", "asr2")
PROTOCOLS = ("group13", "group13_literal")
MEANT = {
    "label_mode": ("all_to_one",), "placement": ("append",), "poison_from": ("not_target",),
    "asr_on": ("not_target",), "ratio_of": ("target", "all"),
    "apply_trigger": ("before_augmentation",), "cover_rate": ("0",),
    "filter_scope": ("target",), "removal_budget": ("1.5eps",), "max_removed": ("any",),
    "center": ("true",), "clean_holdout": ("0",),
}  # fmt: skip
"""Protocol values with which a cell repeats an experiment of the published report. The layer is
not among them, since the report does not state it."""
DATASET, MODEL, DEFENSE = "cifar10", "resnet18", "spectral"
TRAINING_IMAGES = 50_000

_TABLES: dict[str, dict[tuple[str, float], tuple[float, ...]]] = {
    "pixel": {
        ("bird", 0.05): (92.31, 79.12, 0, 92.54, 0.00),
        ("bird", 0.10): (92.19, 90.10, 1, 92.64, 2.43),
        ("dog", 0.05): (92.43, 84.31, 12, 92.52, 1.43),
        ("dog", 0.10): (92.21, 93.12, 3, 92.62, 0.39),
        ("horse", 0.05): (92.67, 86.32, 17, 92.72, 2.95),
        ("horse", 0.10): (92.54, 82.34, 6, 92.67, 1.98),
    },
    "pattern": {
        ("bird", 0.05): (92.24, 79.64, 38, 92.42, 2.05),
        ("bird", 0.10): (92.17, 91.10, 3, 92.54, 1.73),
        ("dog", 0.05): (92.41, 85.11, 11, 92.49, 1.33),
        ("dog", 0.10): (92.24, 93.22, 3, 92.58, 0.42),
        ("horse", 0.05): (92.57, 86.61, 18, 92.62, 2.99),
        ("horse", 0.10): (92.44, 82.74, 5, 92.61, 1.68),
    },
}


def asks_the_same(protocol: Any, source: Any, resolved: Mapping[str, Any]) -> bool:
    """Whether the protocol of a cell is that of the published report.

    The protocol's name must be in `PROTOCOLS`, and each value must be one of the values that
    `MEANT` lists for its key. Values that were not recorded are not compared. `resolved` maps names
    such as "protocol.placement" to JSON values or text. `source` is None or "any" if there is no
    source class; the published report has none.
    """
    if protocol not in PROTOCOLS or source not in (None, "any"):
        return False
    said = {name: words(resolved.get(f"protocol.{name}")) for name in MEANT}
    return all(said[name] in (words(None), *meant) for name, meant in MEANT.items())


def lookup(trigger: Any, target: Any, ratio: Any) -> dict[str, float] | None:
    """Returns the published report's values for one cell, or None if the report does not contain
    this cell."""
    for (name, share), figures in _TABLES.get(str(trigger), {}).items():
        if name == target and abs(share - float(ratio)) < 1e-9:
            return dict(zip(COLUMNS, figures, strict=True))
    return None
