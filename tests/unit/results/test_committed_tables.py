"""The tables.md of every committed sweep is what the code prints from its records."""

from __future__ import annotations

from pathlib import Path

import pytest

from backdoor_lab.compare.report import SweepReport
from backdoor_lab.results.__main__ import tables_text
from tests.documents.project import SWEEPS, changed_tables, frozen_sweeps

FOLDERS = frozen_sweeps()


def test_every_committed_sweep_and_no_other_folder_has_tables() -> None:
    found = {path.parent for path in SWEEPS.rglob("tables.md")}
    assert {path for path in found if "runs" not in path.relative_to(SWEEPS).parts} == {*FOLDERS}
    assert len(FOLDERS) > 40


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: str(path.relative_to(SWEEPS)))
def test_committed_tables_are_what_the_code_prints_from_the_records(folder: Path) -> None:
    """If you change the text on purpose, run `make documents`."""
    report = SweepReport.of(folder)
    assert report.sweep.warnings == []
    assert (folder / "tables.md").read_text(encoding="utf-8") == tables_text(report)


def test_tables_that_contradict_their_records_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    path = SWEEPS / "demo" / "controls" / "tables.md"
    text = path.read_text(encoding="utf-8")
    read = Path.read_text
    monkeypatch.setattr(
        Path, "read_text",
        lambda self, *a, **k: read(self, *a, **k).replace("100.00", "99.00") if self == path
        else read(self, *a, **k),
    )  # fmt: skip
    assert changed_tables([path.parent]) == {path: text}
