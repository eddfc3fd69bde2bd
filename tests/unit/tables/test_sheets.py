"""CSV files without spreadsheet formulas, and text that every writer can encode."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from backdoor_lab.core.small_files import decode
from backdoor_lab.tables.sheets import csv_of_frame, csv_text, guarded
from tests.helpers.hostile import FORMULAS
from tests.helpers.written import cells_of, sweep_of, write_everything

NUMBERS = ["-0.5", "+1e-5", "-3", "-.5", "+7.", "-1E+10"]


@pytest.mark.parametrize("text", FORMULAS)
def test_text_that_a_spreadsheet_would_execute_gets_an_apostrophe(text: str) -> None:
    assert guarded(text) == "'" + text.replace("\r", "\n")


@pytest.mark.parametrize("value", [*NUMBERS, -0.5, 3, None, "", "cat", "a=b", "5%", "–", True])
def test_numbers_and_plain_names_are_unchanged(value: Any) -> None:
    assert guarded(value) is value


@pytest.mark.parametrize("text", ["-1_0", "-nan", "-inf", "-1 ", "-١", "--1", "-1\n"])
def test_text_that_only_resembles_a_number_gets_an_apostrophe(text: str) -> None:
    assert guarded(text) == f"'{text}"


def test_a_carriage_return_does_not_start_a_new_row() -> None:
    """Otherwise, text after it could be read as a formula."""
    text = csv_text(["a\r=1"], [["b\r\n=2", "c\r=3"]])
    assert list(csv.reader(io.StringIO(text))) == [["a\n=1"], ["b\n=2", "c\n=3"]]
    assert "\r" not in text + csv_of_frame(pd.DataFrame({"a\r=1": ["b\r=2"]}))


def test_text_that_looks_like_a_formula_is_escaped_in_csv_header_and_rows() -> None:
    text = csv_text(["=a", "b"], [["@c", -0.5], [None, "-0.5"]])
    assert list(csv.reader(io.StringIO(text))) == [["'=a", "b"], ["'@c", "-0.5"], ["", "-0.5"]]


@pytest.mark.parametrize("kind", ["object", "string", "category"])
def test_text_that_looks_like_a_formula_is_escaped_for_every_text_dtype(kind: str) -> None:
    frame = pd.DataFrame({"=a": pd.Series(["=1", "-0.5", None], dtype=kind), "n": [-0.5, -1, 2]})
    lines = list(csv.reader(io.StringIO(csv_of_frame(frame))))
    assert lines == [["'=a", "n"], ["'=1", "-0.5"], ["-0.5", "-1.0"], ["", "2.0"]]


def test_a_data_frame_gives_the_same_csv_as_its_python_values() -> None:
    floats = [0.0, -0.0, 1e-300, float("nan"), 0.1, 1 / 3]
    texts = ["a,b", 'say "x"', "", None, " a", "two\nlines"]
    counts = pd.array([0, 2**63 - 1, None, 3, 3, 0], dtype="Int64")
    frame = pd.DataFrame({"f": floats, "t": pd.array(texts, dtype="string"), "n": counts})
    plain = [[None if pd.isna(v) else v for v in line] for line in frame.astype(object).to_numpy()]
    assert csv_of_frame(frame) == csv_text(list(frame), plain)
    assert csv_of_frame(frame[:0]) == "f,t,n\n"


@pytest.mark.parametrize("text", FORMULAS)
def test_no_csv_file_contains_a_formula(tmp_path: Path, text: str) -> None:
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
def test_text_with_an_unpaired_unicode_surrogate_can_be_exported(tmp_path: Path, text: str) -> None:
    write_everything(tmp_path, sweep_of(tmp_path, text))
    for path in tmp_path.rglob("*"):
        if path.suffix in (".csv", ".md", ".tex", ".html"):
            path.read_bytes().decode("utf-8")
    frame = pd.read_parquet(tmp_path / "e.parquet")
    assert len(frame) == 5
    assert text.encode("utf-8", "backslashreplace").decode() in set(frame["trigger"])


def test_surrogate_pairs_are_decoded_to_characters() -> None:
    assert decode(json.dumps({"😀": ["😀", "é"]}).encode()) == {"😀": ["😀", "é"]}
    assert decode(b'{"\\ud83d\\ude00": 1}') == {"😀": 1}
    assert decode(b'{"\\uD800a": ["\\udc00"]}') == {"\\ud800a": ["\\udc00"]}


def test_negative_zero_keeps_its_sign_in_a_column_of_repeated_numbers() -> None:
    frame = pd.DataFrame({"f": [0.0, -0.0, float("nan"), 1.5, 1.5, float("nan"), 1e-20]})
    assert csv_of_frame(frame) == "f\n0.0\n-0.0\n\n1.5\n1.5\n\n1e-20\n"
