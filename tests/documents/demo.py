"""The tables of the documents in multirun_reports/demo."""

from __future__ import annotations

import itertools
import json
from typing import Any

from tests.documents.cells import SWEEPS, cells, interval, listed
from tests.documents.markers import markdown, table

ATTACK = ("Trigger", "Target", "Ratio")
FIGURES = ("#Pois", "Nat1", "ASR1", "#Pois Left", "Nat2", "ASR2")
SETTINGS = (
    "size",
    "batch_size",
    "epochs",
    "noise",
    "label_smoothing",
    "weight_decay",
    "lr",
    "shift",
)


@table("demo_cells")
def _cells() -> str:
    return listed(cells("demo/report"), *ATTACK, *FIGURES)


@table("demo_seeds")
def _seeds() -> str:
    found = cells("demo/seeds")
    attacks = dict.fromkeys(tuple(cell[name] for name in ATTACK) for cell in found)
    groups = [[c for c in found if tuple(c[n] for n in ATTACK) == each] for each in attacks]
    rows = [
        [*attack, *(interval(group, column) for column in FIGURES)]
        for attack, group in zip(attacks, groups, strict=True)
    ]
    return markdown([*ATTACK, *FIGURES], rows)


@table("demo_controls")
def _controls() -> str:
    defenses = dict.fromkeys(cell["Defense"] for cell in cells("demo/controls"))
    rows = [
        [name, *(interval(cells("demo/controls", defense=name), c) for c in FIGURES)]
        for name in defenses
    ]
    return markdown(["Defense", *FIGURES], rows)


@table("demo_pilots")
def _pilots() -> str:
    """For each setting, how many networks have an ASR1 of at least 95 %, and how many poisoned
    images the filter left for these."""
    path = SWEEPS / "bench" / "demo_pilots.json"
    trainings = json.loads(path.read_text(encoding="utf-8"))["trainings"]
    found: dict[tuple[float, ...], list[dict[str, Any]]] = {}
    for each in trainings:
        found.setdefault(tuple(each[name] for name in SETTINGS), []).append(each)
    rows = [
        [*(f"{value:g}" for value in setting),
         *itertools.chain(*(_learned(group, trigger) for trigger in ("pixel", "pattern")))]
        for setting, group in sorted(found.items(), key=lambda item: _order(item[0]))
    ]  # fmt: skip
    head = ["Size", "Batch", "Epochs", "Noise", "Label smoothing", "Weight decay",
            "Learning rate", "Shift", "Pixel learned", "Left, pixel", "Pattern learned",
            "Left, pattern"]  # fmt: skip
    return markdown(head, rows, right="rrrrrrrrllll")


def _order(setting: tuple[float, ...]) -> tuple[float, ...]:
    size, batch, epochs, noise, smoothing, decay, rate, shift = setting
    return (-size, -noise, -epochs, batch, smoothing, -decay, rate, -shift)


def _learned(group: list[dict[str, Any]], trigger: str) -> list[str]:
    tried = [each for each in group if each["trigger"] == trigger]
    left = [each["pois_left"] for each in tried if each["asr1"] >= 95]
    if not tried:
        return ["", ""]
    ends = " to ".join(dict.fromkeys(map(str, (min(left), max(left))))) if left else ""
    return [f"{len(left)} of {len(tried)}", ends]
