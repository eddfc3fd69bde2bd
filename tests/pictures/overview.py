"""A picture of what the project measures: a trigger, the scores with the threshold, and the result.

It shows one cell of multirun_reports/paper/report_airbench. The record of this cell lacks the
scores. Their histogram is in overview.json next to the picture. This command writes overview.json:

    python -m tests.pictures.overview RECORD.json STORE
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from backdoor_lab.analysis.cell_artifacts import CellArtifacts, cell_artifacts, in_target
from backdoor_lab.analysis.evidence import Histogram, histogram
from backdoor_lab.attacks.pattern import Pattern
from backdoor_lab.figures.detection import draw_scores
from backdoor_lab.figures.style import EDGE, VERMILLION, new, styled
from backdoor_lab.results.artifact_reader import ArtifactReader
from tests.documents.cells import SWEEPS, Cell, figure, the
from tests.pictures import photographs
from tests.pictures.small import small

SCORES = SWEEPS / "pictures" / "overview.json"
ROWS = {"accuracy (Nat), %": "Nat", "attack success (ASR), %": "ASR"}


def cell() -> Cell:
    """The cell that the picture shows."""
    asked = {"trigger": "pattern", "target": "horse", "ratio": "10%", "defense": "spectral"}
    return the("paper/report_airbench", **asked)


def drawn() -> bytes:
    """Draw the picture: a PNG that is 1800 pixels wide, to be shown at half of that width."""
    data = io.BytesIO()
    _figure(cell(), bars()).savefig(data, dpi=200)
    return small(data.getvalue())


def bars() -> Histogram:
    """Read the histogram of scores from the file SCORES."""
    kept = json.loads(SCORES.read_text(encoding="utf-8"))
    edges, clean, poison = (np.array(kept[name]) for name in ("edges", "clean", "poison"))
    return Histogram(edges, clean, poison, kept["log"], kept["cut"])


@styled
def _figure(shown: Cell, scores: Histogram) -> Figure:
    found = new(9.0, 3.1)
    left, middle, right = found.subplots(1, 3, gridspec_kw={"width_ratios": (0.85, 1.25, 1.0)})
    _image(left, shown)
    draw_scores(middle, scores)
    middle.set_title(
        "2. Every image of this label gets a score;\nthose above the threshold are removed"
    )
    _table(right, shown)
    return found


def _image(axes: Axes, shown: Cell) -> None:
    said = shown["record"]["config"]["trigger"]
    trigger = Pattern(**{k: v for k, v in said.items() if k not in ("_target_", "name")})
    with tempfile.TemporaryDirectory() as folder:
        path = photographs.write(Path(folder), 32) / "train" / "china" / "00.png"
        pixels = torch.tensor(np.asarray(Image.open(path))).permute(2, 0, 1)
    axes.imshow(trigger(pixels[None])[0].permute(1, 2, 0).numpy())
    axes.annotate("trigger", (28.5, 28.0), (11, 26.5), color="white", weight="bold",
                  arrowprops={"color": "white", "arrowstyle": "->"})  # fmt: skip
    axes.set(xticks=[], yticks=[])
    axes.set_title(f"1. Images get a trigger and\nthe label “{shown['Target']}”")


def _table(axes: Axes, shown: Cell) -> None:
    """Draw a table with one line per measure, before and after the defense."""
    lines = [[name, *(figure(shown[f"{short}{n}"], f"{short}{n}") for n in (1, 2))]
             for name, short in ROWS.items()]  # fmt: skip
    lines.append(["poisoned images", str(shown["#Pois"]), str(shown["#Pois Left"])])
    axes.axis("off")
    axes.set_title("3. Without them, the network\nis trained and measured again")
    for column, (x, head) in enumerate(((0.0, ""), (0.78, "before"), (1.06, "after"))):
        axes.text(x, 0.86, head, ha="right" if column else "left", weight="bold")
        for row, line in enumerate(lines):
            strong = column > 0 and row > 0
            axes.text(x, 0.72 - 0.15 * row, line[column], ha="right" if column else "left",
                      color=VERMILLION if strong and column == 1 else EDGE,
                      weight="bold" if strong else "normal")  # fmt: skip
    axes.text(0.0, 0.02, _conditions(shown), fontsize=7.5, linespacing=1.5)


def _conditions(shown: Cell) -> str:
    record = shown["record"]
    return (
        f"CIFAR-10 (JPEG copy), {shown['Trigger']} → {shown['Target']},\n"
        f"{shown['Ratio'][:-1]} % of the class, {record['choices']['model']}, seed"
        f" {shown['Seed']};\nthe image: scikit-learn's china.jpg"
    )


def keep(record: dict[str, Any], store: Path) -> None:
    """Write the histogram of a completed cell's scores to the file SCORES."""
    found = cell_artifacts(ArtifactReader(store), record)
    assert found is not None, "the store does not have the cell's scores"
    where = in_target(found)
    said = histogram(*(each[where] for each in _judged(found)))
    assert said is not None
    kept = {
        "weights": record["hashes"]["weights1"],
        "edges": [float(f"{edge:.6g}") for edge in said.edges], "clean": said.clean.tolist(),
        "poison": said.poison.tolist(), "log": said.log, "cut": said.cut,
    }  # fmt: skip
    SCORES.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def _judged(found: CellArtifacts) -> tuple[Any, Any, Any]:
    return found.filter_result.scores, found.training.is_poison, found.filter_result.keep


if __name__ == "__main__":
    keep(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))
