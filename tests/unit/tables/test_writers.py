"""Tables in each file format: hostile names are escaped, and the structure is right."""

from __future__ import annotations

import csv
import io
import re
import subprocess
from pathlib import Path

import pytest

from backdoor_lab.compare.report import SweepReport
from backdoor_lab.reports.__main__ import main as reports
from backdoor_lab.results.sweeps import read_sweep
from backdoor_lab.tables.markup import TextTable
from backdoor_lab.tables.sheets import guarded
from backdoor_lab.tables.text import document
from backdoor_lab.tables.writers import Document, latex, markdown, page, sheet, terminal
from tests.helpers.hostile import NAMES
from tests.helpers.records import GRID, record, write_sweep
from tests.helpers.tables import Tags, latex_with_booktabs


def rendered(folder: Path, name: str) -> dict[str, str]:
    made = [record(target=name, trigger=name, id="a", choices={"defense": name})]
    made += [record(trigger=name, id="b", status="failed: " + name)]
    (table,) = SweepReport(read_sweep(write_sweep(folder / "s", made))).tables
    return {f.__name__: f(document(table)) for f in (markdown, latex, page, sheet)}


@pytest.mark.parametrize("name", NAMES)
def test_hostile_names_are_escaped(tmp_path: Path, name: str) -> None:
    texts = rendered(tmp_path, name)
    reader = Tags()
    reader.feed(texts["page"])
    assert reader.tags == {
        "html", "head", "meta", "title", "style", "body", "h3", "table", "tr", "th", "td", "p",
    }  # fmt: skip
    grid = [line for line in texts["markdown"].splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in grid} == {11}
    assert not re.search(r"<|\x1b|\u202e", texts["markdown"])
    body = texts["latex"].split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    assert [len(re.findall(r"(?<!\\)&", line)) for line in body] == [9, 9]
    assert texts["latex"].isascii()
    assert "\\input" not in texts["latex"]
    assert not re.search(r"(?<!\\)[%#_]", texts["latex"])
    rows = list(csv.DictReader(io.StringIO(texts["sheet"])))
    # Neither an unpaired surrogate nor a spreadsheet formula is left.
    said = guarded(name.encode(errors="backslashreplace").decode())
    assert [row["target"] for row in rows] == [said, "bird"]


def test_each_file_format_escapes_text_by_its_own_rules(tmp_path: Path) -> None:
    texts = rendered(tmp_path, "a_b%&|<i>")
    assert "a_b%&amp;\\|&lt;i&gt;" in texts["markdown"]
    assert r"a\_b\%\&\textbar{}\textless{}i\textgreater{}" in texts["latex"]
    assert "a_b%&amp;|&lt;i&gt;" in texts["page"]


def test_special_characters_are_printed_unchanged_on_a_terminal() -> None:
    """A terminal would show the escapes of a file format, so none are printed."""
    note = "p < 0.05 | a & b > c * [x] $5 ~7 _y_ https://z"
    grid = TextTable("a_b%&|<i> #", ["A & B"], [["x < y"]], [note], 1)
    assert terminal(Document("", [grid], [], [])).splitlines() == [
        "### a_b%&|<i> #", "", "| A & B |", "| ----- |", "| x < y |", "", f"- {note}",
    ]  # fmt: skip
    hidden = TextTable("a\x1b[2Jb", ["h"], [], ["c\u202ed\ne"], 1)
    assert terminal(Document("", [hidden], [], [])).isprintable() is False
    assert not re.search("[\x1b\u202e]", terminal(Document("", [hidden], [], [])))


@pytest.mark.parametrize("text", ["p < 0.05", "a > b", "A & B"])
def test_special_characters_between_spaces_are_not_escaped_in_markdown(text: str) -> None:
    grid = TextTable("t", ["h"], [], [text], 1)
    line = markdown(Document("", [grid], [], [])).splitlines()[-1].removeprefix("- ")
    assert line == text


def test_tables_printed_on_a_terminal_contain_no_markup_escapes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The note on bold figures says p < 0.05; values of a protocol are separated by |."""
    made = [record(defense=d, seed=s, asr2=0.1 * s) for d in ("spectral", "none") for s in (0, 1)]
    made[0]["protocol"] = {**made[0]["protocol"], "center": False}
    folder = write_sweep(tmp_path / "s", made)
    assert reports([str(folder)]) == 0
    said = capsys.readouterr().out
    assert "p < 0.05" in said
    assert not re.search(r"&\w+;|\\[^\w]", said)


def test_the_csv_table_has_published_values_and_the_differences_from_them(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "s", [record(nat1=0.93), record(target="cat")])
    (table,) = SweepReport(read_sweep(folder)).tables
    first, second = csv.DictReader(io.StringIO(sheet(document(table))))
    assert (first["nat1"], first["ref_nat1"], first["diff_nat1"]) == ("93.0", "92.31", "0.69")
    assert second["ref_nat1"] == second["diff_nat1"] == second["nat1_ci95"] == ""
    assert first["protocol.ratio_of"] == "target"
    assert first["nat1_n"] == "1"


def test_latex_tables_have_booktabs_rules_in_order(tmp_path: Path) -> None:
    table = SweepReport(
        read_sweep(write_sweep(tmp_path / "s", [record(*cell) for cell in GRID]))
    ).tables[0]
    text = latex(document(table))
    order = [text.index(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")]
    assert order == sorted(order)
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 2
    assert r"\begin{tabular}{llrrrrrr}" in text
    assert r"bird & 5\% & 50 & " in text


@pytest.mark.skipif(not latex_with_booktabs(), reason="no pdflatex with booktabs here")
def test_latex_tables_compile(tmp_path: Path) -> None:
    body = "".join(rendered(tmp_path / str(n), name)["latex"] for n, name in enumerate(NAMES))
    head = "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\n"
    (tmp_path / "x.tex").write_text(head + body + "\\end{document}\n")
    command = [
        "pdflatex",
        "-interaction=nonstopmode",
        "-halt-on-error",
        "-no-shell-escape",
        "x.tex",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
