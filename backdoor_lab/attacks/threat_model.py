"""Threat models: what an attacker controls and must know."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path

CONTROLS = ("images", "labels")
KNOWS = ("data", "model")


@dataclass(frozen=True)
class ThreatModel:
    """What the attacker controls (some of `CONTROLS`) and must know (some of `KNOWS`).

    ``images`` are the poisoned training images, and ``labels`` the labels of these images. ``data``
    is the clean training set, and ``model`` the victim's architecture and recipe. `paper` says
    where the paper's attacker differs. Every attacker can change test images. No attacker controls
    the victim's training.
    """

    controls: tuple[str, ...] = CONTROLS
    knows: tuple[str, ...] = ()
    paper: str = ""

    def __str__(self) -> str:
        """The line shown in the guide and by ``--help``.

        >>> str(ThreatModel(("images",), ("data", "model")))
        'controls images; knows data and model'
        """
        known = " and ".join(self.knows) or "nothing"
        differs = f" (paper: {self.paper})" if self.paper else ""
        return f"controls {' and '.join(self.controls)}; knows {known}{differs}"


def of_every_trigger(conf: Path) -> dict[str, ThreatModel]:
    """Maps the name of each trigger in the configuration folder `conf` to its threat model."""
    import yaml

    found = {}
    for path in sorted(conf.glob("trigger/*.yaml")):
        module, _, name = yaml.safe_load(path.read_text())["_target_"].rpartition(".")
        found[path.stem] = getattr(importlib.import_module(module), name).threat_model
    return found
