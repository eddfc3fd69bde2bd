"""The tables of the documents in multirun_reports/attacks."""

from __future__ import annotations

from collections import defaultdict

from tests.documents.cells import Cell, cells, figure
from tests.documents.markers import markdown, table

EMBEDDED = (
    "pixel", "pattern", "patch", "blended", "adaptive_blend", "adaptive_patch", "tact",
    "label_consistent", "sleeper_agent", "narcissus", "reflection", "sinusoid", "low_frequency",
    "frequency", "warp", "steganographic",
)  # fmt: skip
PHOTOGRAPHS = (
    "sinusoid", "adaptive_blend", "blended", "patch", "pattern", "tact", "reflection",
    "low_frequency", "adaptive_patch", "warp", "pixel", "frequency",
)  # fmt: skip


Version = dict[str, Cell]
"""The cells of one trigger in one version, by ratio."""


def _versions(sweep: str, trigger: str) -> dict[str, Version]:
    """The cells of `trigger` in `sweep` and its second part, by version: `tact`, then `tact@2`."""
    found: dict[int, Version] = defaultdict(dict)
    for cell in cells(sweep, f"{sweep}_2", trigger=trigger):
        if cell["record"]["config"]["protocol"]["ratio_of"] == "target":
            found[cell["record"]["config"]["code"]["triggers"][trigger]][cell["Ratio"]] = cell
    return {f"`{trigger}@{v}`" if v > 1 else f"`{trigger}`": found[v] for v in sorted(found)}


@table("attacks_embedded")
def _embedded() -> str:
    places = [(column, ratio) for ratio in ("10%", "30%") for column in ("Nat1", "ASR1", "AUROC")]
    head = [f"{column} {ratio[:-1]} %" for column, ratio in places]
    rows = []
    for trigger in EMBEDDED:
        for name, at in _versions("attacks/embedded", trigger).items():
            rows.append([
                name, figure(at["0%"]["ASR1"], "ASR1"),
                *(figure(at[ratio][column], column) for column, ratio in places),
            ])  # fmt: skip
    return markdown(["Trigger", "ASR at 0 %", *head], rows)


@table("attacks_photographs")
def _photographs() -> str:
    rows = []
    for trigger in PHOTOGRAPHS:
        for name, at in _versions("attacks/photographs", trigger).items():
            cell = at["50%"]
            mode = cell["record"]["protocol"]["label_mode"].replace("_", " ")
            rows.append([
                name, "source to target" if cell["Source"] else mode,
                figure(at["0%"]["ASR1"], "ASR1"),
                *(figure(cell[column], column)
                  for column in ("Nat1", "ASR1", "AUROC", "#Pois Left")),
            ])  # fmt: skip
    head = ["Trigger", "Labels", "ASR at 0 %", "Nat1", "ASR1", "AUROC (spectral)", "#Pois Left"]
    return markdown(head, rows)
