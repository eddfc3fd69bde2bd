"""Messages to the user: complete English lines without object addresses."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from backdoor_lab.core.errors import DataError, LabError, many, reason_of
from tests.helpers.cells import TINY, environment
from tests.helpers.project import SOURCES, name_of


def test_no_message_contains_an_object_address() -> None:
    with pytest.raises(OSError, match="0x") as found:
        Image.open(io.BytesIO(b"no picture"))
    assert str(DataError(f"a.png: {found.value}")) == "a.png: cannot identify image file"
    assert reason_of(found.value) == "UnidentifiedImageError: cannot identify image file"
    assert str(LabError(f"a {object()} b <c> 0x12 d")) == "a b <c> 0x12 d"


def test_counts_have_the_right_plural() -> None:
    assert [many(n, "cell") for n in (0, 1, 2, "?")] == ["0 cells", "1 cell", "2 cells", "? cells"]


COUNTED = re.compile(
    r"(?:\{[^{}]*\b(?:len|sum|count)\b[^{}]*\}|%d) (?!is\b|loss\b)[a-z]*s\b(?! of\b)"
)


COUNTING = [
    path for path in SOURCES
    if name_of(path) != "core/errors.py" and path.parent.name not in ("attacks", "defenses")
]  # fmt: skip


@pytest.mark.parametrize("path", COUNTING, ids=name_of)
def test_plurals_are_formed_only_by_the_function_many(path: Path) -> None:
    """Every message with a count uses `errors.many`, since any count can be one."""
    found = [line.strip() for line in path.read_text().splitlines() if COUNTED.search(line)]
    assert found == []


def test_no_line_of_output_or_log_ends_in_a_space(tmp_path: Path) -> None:
    """This holds for the output of every command and for the log of a cell."""
    run = ["-m", "backdoor_lab", "-m", *TINY, "retrain=false", "trainer.progress=lines",
           "hydra.sweep.dir=here"]  # fmt: skip
    others = [[*run, "defense=random"], ["-m", "backdoor_lab.status", "here"],
              ["-m", "backdoor_lab.reports", "here"],
              ["-m", "backdoor_lab.export", "here", "--out", "x.csv"]]  # fmt: skip
    text = ""
    for words in [run, *others]:
        said = subprocess.run([sys.executable, *words], cwd=tmp_path, env=environment(),
                              capture_output=True, text=True, timeout=240, check=True)  # fmt: skip
        text += said.stdout + said.stderr
    for log in (tmp_path / "here").glob("*/*.log"):
        text += log.read_text()
    assert [line for line in text.splitlines() if line != line.rstrip()] == []
    assert "load on cpu" in text
    assert re.search(r"x.csv: 2 cells of 1 sweep, \d+ columns", text)
    assert re.search(r"1 of 1 cell done: \S+tables$", text, re.MULTILINE)
    # The second sweep adds a cell of another defense to the same folder.
    assert re.search(r"1 of 1 cell done: \S+tables; in this folder: 1 earlier cell, too$", text,
                     re.MULTILINE)  # fmt: skip
    reused = re.findall(r"^.*random.* reused from the store: (.*)$", text, re.MULTILINE)
    assert set(reused) == {"poison, train, train_accuracy1, measure1, extract"}
