"""The tables of the documents in multirun_reports/attacks."""

from __future__ import annotations

from tests.documents.cells import cells, figure, the
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


@table("attacks_embedded")
def _embedded() -> str:
    places = [(column, ratio) for ratio in ("10%", "30%") for column in ("Nat1", "ASR1", "AUROC")]
    head = [f"{column} {ratio[:-1]} %" for column, ratio in places]
    rows = []
    for name in EMBEDDED:
        at = {cell["Ratio"]: cell for cell in cells("attacks/embedded", trigger=name)}
        rows.append([f"`{name}`", figure(at["0%"]["ASR1"], "ASR1"),
                     *(figure(at[ratio][column], column) for column, ratio in places)])  # fmt: skip
    return markdown(["Trigger", "ASR at 0 %", *head], rows)


@table("attacks_photographs")
def _photographs() -> str:
    rows = []
    for name in PHOTOGRAPHS:
        clean = the("attacks/photographs", trigger=name, ratio="0%")
        cell = the("attacks/photographs", trigger=name, ratio="50%")
        mode = cell["record"]["protocol"]["label_mode"].replace("_", " ")
        rows.append([
            f"`{name}`", "source to target" if cell["Source"] else mode,
            figure(clean["ASR1"], "ASR1"),
            *(figure(cell[column], column) for column in ("Nat1", "ASR1", "AUROC", "#Pois Left")),
        ])  # fmt: skip
    head = ["Trigger", "Labels", "ASR at 0 %", "Nat1", "ASR1", "AUROC (spectral)", "#Pois Left"]
    return markdown(head, rows)
