"""CSV that no spreadsheet runs, and text that every writer can write."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from backdoor_lab.core.sheets import csv_of_frame, csv_text, guarded
from backdoor_lab.core.small_files import decode
from tests.helpers.hostile import FORMULAS
from tests.helpers.written import cells_of, sweep_of, write_everything

NUMBERS = ["-0.5", "+1e-5", "-3", "-.5", "+7.", "-1E+10"]


@pytest.mark.parametrize("text", FORMULAS)
def test_text_that_a_spreadsheet_would_run_gets_an_apostrophe(text: str) -> None:
    assert guarded(text) == "'" + text.replace("\r", "\n")


@pytest.mark.parametrize("value", [*NUMBERS, -0.5, 3, None, "", "cat", "a=b", "5%", "–", True])
def test_numbers_and_plain_names_stay_as_they_are(value: Any) -> None:
    assert guarded(value) is value


@pytest.mark.parametrize("text", ["-1_0", "-nan", "-inf", "-1 ", "-١", "--1", "-1\n"])
def test_what_only_looks_like_a_number_is_guarded(text: str) -> None:
    assert guarded(text) == f"'{text}"


def test_a_carriage_return_begins_no_new_line() -> None:
    """A reader that takes it for one would find a formula behind it."""
    text = csv_text(["a\r=1"], [["b\r\n=2", "c\r=3"]])
    assert list(csv.reader(io.StringIO(text))) == [["a\n=1"], ["b\n=2", "c\n=3"]]
    assert "\r" not in text + csv_of_frame(pd.DataFrame({"a\r=1": ["b\r=2"]}))


def test_heads_and_lines_are_guarded_alike() -> None:
    text = csv_text(["=a", "b"], [["@c", -0.5], [None, "-0.5"]])
    assert list(csv.reader(io.StringIO(text))) == [["'=a", "b"], ["'@c", "-0.5"], ["", "-0.5"]]


@pytest.mark.parametrize("kind", ["object", "string", "category"])
def test_frames_are_guarded_in_every_kind_of_text(kind: str) -> None:
    frame = pd.DataFrame({"=a": pd.Series(["=1", "-0.5", None], dtype=kind), "n": [-0.5, -1, 2]})
    lines = list(csv.reader(io.StringIO(csv_of_frame(frame))))
    assert lines == [["'=a", "n"], ["'=1", "-0.5"], ["-0.5", "-1.0"], ["", "2.0"]]


@pytest.mark.parametrize("text", FORMULAS)
def test_no_csv_file_holds_a_formula(tmp_path: Path, text: str) -> None:
    write_everything(tmp_path, sweep_of(tmp_path, text))
    found = cells_of(tmp_path)
    assert {name for name, _ in found} >= {"records.csv", "e.csv", "c.csv", "compare_random.csv"}
    assert any(name.startswith("wide_") for name, _ in found)
    assert any(name.startswith("table_") for name, _ in found)
    assert any(text.strip() in cell for _, cell in found)
    for name, cell in found:
        assert guarded(cell) == cell, f"{name}: {cell!r}"
    assert all(b"\r" not in path.read_bytes() for path in tmp_path.rglob("*.csv"))


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "\ude00\ud83d", "=\ud800"])
def test_half_of_a_surrogate_pair_ends_no_export(tmp_path: Path, text: str) -> None:
    write_everything(tmp_path, sweep_of(tmp_path, text))
    for path in tmp_path.rglob("*"):
        if path.suffix in (".csv", ".md", ".tex", ".html"):
            path.read_bytes().decode("utf-8")
    frame = pd.read_parquet(tmp_path / "e.parquet")
    assert len(frame) == 5
    assert text.encode("utf-8", "backslashreplace").decode() in set(frame["trigger"])


def test_whole_pairs_stay_letters() -> None:
    assert decode(json.dumps({"😀": ["😀", "é"]}).encode()) == {"😀": ["😀", "é"]}
    assert decode(b'{"\\ud83d\\ude00": 1}') == {"😀": 1}
    assert decode(b'{"\\uD800a": ["\\udc00"]}') == {"\\ud800a": ["\\udc00"]}
