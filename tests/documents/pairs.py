"""The tables of the sweeps over all pairs of a source and a target class."""

from __future__ import annotations

from tests.documents.cells import cells, listed, mean
from tests.documents.markers import markdown, table

SWEEP = "paper/pairs"
COLUMNS = ("ASR1", "AUROC", "#Pois Left", "ASR2")
LEFT = ((0, 0), (1, 10), (11, 20), (21, 30))


def _mean(found: list[dict[str, object]], column: str) -> str:
    return mean(found, column, 3 if column == "AUROC" else 1)


@table("pairs_classes")
def _classes() -> str:
    """For each class, the means over the nine pairs with this source, and over the nine pairs with
    this target. The last row has the means over all ninety pairs."""
    names = dict.fromkeys(cell["Source"] for cell in cells(SWEEP))
    rows = []
    for name in [*sorted(names), "all"]:
        sides = [cells(SWEEP, **({} if name == "all" else {s: name})) for s in ("source", "target")]
        rows.append([name, *(_mean(group, column) for group in sides for column in COLUMNS)])
    head = [f"as {side}: {column}" for side in ("source", "target") for column in COLUMNS]
    return markdown(["Class", *head], rows)


@table("pairs_left")
def _left() -> str:
    """The pairs, grouped by the number of poisoned images that the filter left."""
    rows = []
    for low, high in LEFT:
        found = [cell for cell in cells(SWEEP) if low <= cell["#Pois Left"] <= high]
        rows.append([f"{low} to {high}" if low < high else str(low), len(found),
                     _mean(found, "ASR2"), sum(cell["ASR2"] <= 5 for cell in found)])  # fmt: skip
    return markdown(["#Pois Left", "Pairs", "ASR2, mean", "ASR2 at most 5 %"], rows, right="lrrr")


@table("pairs_extremes")
def _extremes() -> str:
    """The four pairs with the lowest AUROC, and the four with the highest."""
    ranked = sorted(cells(SWEEP), key=lambda c: (c["AUROC"], c["Source"], c["Target"]))
    return listed([*ranked[:4], *ranked[-4:]], "Source", "Target", *COLUMNS)
