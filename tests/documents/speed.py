"""The tables of the documents on speed: multirun_reports and its benchmarks."""

from __future__ import annotations

import json

from backdoor_lab.results.index import index
from tests.documents.cells import SWEEPS
from tests.documents.markers import markdown, table

SIGNS = {">=": "≥", "<=": "≤"}


@table("results_index")
def _index() -> str:
    return index(SWEEPS)


@table("benchmarks")
def _benchmarks() -> str:
    """All figures that have a target, by benchmark."""
    rows = []
    for path in sorted((SWEEPS / "bench").glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        for each in found.get("figures", []):
            if each["target"]:
                sign, limit = each["target"].split()
                reached = "yes" if each["reached"] else "**no**"
                rows.append([f"[{path.stem}]({path.name})", each["what"], _measured(each),
                             f"{SIGNS[sign]} {limit}", reached, found["date"][:10]])  # fmt: skip
    head = ["Benchmark", "What", "Measured", "Target", "Reached", "Date"]
    return markdown(head, rows, right="llrrll")


def _measured(each: dict[str, object]) -> str:
    value = float(str(each["value"]))
    number = f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{number} {each['unit']}".strip()
