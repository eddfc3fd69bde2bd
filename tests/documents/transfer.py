"""The table of fine-tuned networks in multirun_reports/defenses."""

from __future__ import annotations

from tests.documents.cells import Cell, cells, spread
from tests.documents.markers import markdown, table

SWEEP, TRIGGERS = "defenses/transfer", ("pixel", "pattern", "blended")
TUNED = (
    ("all", 50, None, 0.01), ("all", 200, None, 0.01), ("all", 200, None, 0.1),
    ("last", 50, None, 0.01), ("last", 200, None, 0.01),
    ("all", 200, "noisier", 0.01), ("last", 200, "noisier", 0.01),
)  # fmt: skip


@table("defenses_transfer")
def _embedded() -> str:
    """One row per setting of the fine-tuning, with the figures before it first."""
    rows = [["before", "", "", "", *_shares(_of(*TUNED[0]), "ASR1", "Nat1")]]
    for layers, images, data, lr in TUNED:
        source = "held out" if data is None else data
        words = [f"`{layers}`", f"{images}", source, f"{lr:g}"]
        rows.append([*words, *_shares(_of(layers, images, data, lr), "ASR2", "Nat2")])
    head = ["`layers`", "images", "from", "`lr`", *(f"{t}: ASR" for t in TRIGGERS)]
    return markdown([*head, *(f"{t}: Nat" for t in TRIGGERS)], rows, right="llllrrrrrr")


def _of(layers: str, images: int, data: str | None, lr: float) -> list[Cell]:
    wanted = {"layers": layers, "clean_images": images, "lr": lr}
    found = [
        cell
        for cell in cells(SWEEP, defense="fine_tuning")
        if wanted.items() <= (given := cell["record"]["config"]["defense"]).items()
        and (given["data"] or {}).get("name") == data
    ]
    assert len(found) == 9, (wanted, data)
    return found


def _shares(found: list[Cell], *columns: str) -> list[str]:
    return [
        spread([cell for cell in found if cell["Trigger"] == trigger], column, 1)
        for column in columns
        for trigger in TRIGGERS
    ]
