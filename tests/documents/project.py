"""The documents of this project, and which of them are out of date."""

from __future__ import annotations

import importlib
from pathlib import Path

from backdoor_lab.compare.report import SweepReport
from backdoor_lab.results.__main__ import tables_text
from tests.documents.markers import TABLES, filled

ROOT = Path(__file__).resolve().parents[2]
SWEEPS = ROOT / "multirun_reports"
FOLDERS = ("backdoor_lab", "conf", "multirun_reports", "tests")
PRINTED = ("tables.md", "features.md")
SUBJECTS = (
    "attack_papers",
    "attacks",
    "defenses",
    "demo",
    "layers",
    "methods",
    "pairs",
    "paper",
    "questions",
    "scan",
    "speed",
    "transfer",
)


def documents() -> list[Path]:
    """Every Markdown document that is written by people rather than by commands."""
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.md")]
    kept = [path for path in found if path.name not in PRINTED and not _printed(path)]
    return [ROOT / "README.md", *sorted(kept)]


def _printed(path: Path) -> bool:
    """Whether a command has written this file: it is in a folder `runs`, or in the `tables` of a
    sweep."""
    place = path.relative_to(ROOT).parts
    return place[0] == "multirun_reports" and bool({"runs", "tables"} & set(place))


def load() -> None:
    """Register all tables, by importing the modules that define them."""
    for subject in SUBJECTS:
        importlib.import_module(f"tests.documents.{subject}")


def changed() -> dict[Path, str]:
    """The documents whose tables differ from records and code, with the text they should have.

    Raises ValueError for an unknown table and for markers that do not match.
    """
    load()
    texts = {path: path.read_text(encoding="utf-8") for path in documents()}
    new = {path: filled(text, TABLES) for path, text in texts.items()}
    return {path: text for path, text in new.items() if text != texts[path]}


def frozen_sweeps() -> list[Path]:
    """The folders of the committed sweeps. Local sweeps, in the folder `runs`, are excluded."""
    found = sorted(path.parent for path in SWEEPS.rglob("records.jsonl"))
    return [path for path in found if "runs" not in path.relative_to(SWEEPS).parts]


def changed_tables(sweeps: list[Path]) -> dict[Path, str]:
    """Every tables.md in the folders `sweeps` that differs from its records, with the text it
    should have."""
    new = {path / "tables.md": tables_text(SweepReport.of(path)) for path in sweeps}
    return {path: text for path, text in new.items() if text != path.read_text(encoding="utf-8")}
