"""Runs a notebook's code cells in this process and stores their printed text and pictures."""

from __future__ import annotations

import base64
import contextlib
import io
import json
from pathlib import Path
from typing import Any

from tests.documents.cells import SWEEPS

NOTEBOOKS = (SWEEPS / "demo" / "demo.ipynb",)
Output = dict[str, Any]


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def executed(path: Path) -> str:
    """Run a notebook in its own folder. Returns its text, including the outputs.

    If a cell prints the same text as before, its old outputs are kept, because pictures differ
    between versions of matplotlib.
    """
    found = read(path)
    code = [cell for cell in found["cells"] if cell["cell_type"] == "code"]
    for number, (cell, outputs) in enumerate(zip(code, outputs_of(path), strict=True), start=1):
        cell["execution_count"] = number
        kinds = [each["output_type"] for each in cell["outputs"]]
        same = printed(cell["outputs"]) == printed(outputs)
        if not same or kinds != [each["output_type"] for each in outputs]:
            cell["outputs"] = outputs
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"


def printed(outputs: list[Output]) -> str:
    """The text that a cell has printed."""
    return "".join("".join(each["text"]) for each in outputs if each["output_type"] == "stream")


def outputs_of(path: Path) -> list[list[Output]]:
    """Run the code cells of a notebook in order, in one namespace and in its folder. Returns the
    outputs of each cell."""
    import matplotlib as mpl

    namespace: dict[str, Any] = {"__name__": "__main__"}
    code = ["".join(c["source"]) for c in read(path)["cells"] if c["cell_type"] == "code"]
    with mpl.rc_context(), contextlib.chdir(path.parent):
        mpl.use("agg")
        return [_run(text, f"{path.name}, cell {n}", namespace) for n, text in enumerate(code, 1)]


def _run(text: str, where: str, namespace: dict[str, Any]) -> list[Output]:
    from matplotlib import pyplot

    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(text, where, "exec"), namespace)
    lines = said.getvalue().splitlines(keepends=True)
    outputs: list[Output] = [{"name": "stdout", "output_type": "stream", "text": lines}]
    drawn = [_picture(pyplot.figure(number)) for number in pyplot.get_fignums()]
    pyplot.close("all")
    return outputs * bool(lines) + drawn


def _picture(figure: Any) -> Output:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=80)
    picture = base64.b64encode(data.getvalue()).decode()
    shown = {"image/png": picture, "text/plain": ["<Figure>"]}
    return {"data": shown, "metadata": {}, "output_type": "display_data"}
