"""The same hostile names in every format: each is shown, and none has an effect."""

from __future__ import annotations

import csv
import html.parser
import io
import logging
import re
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from backdoor_lab.core.output import LogFile, Terminal
from backdoor_lab.core.terminal import plain
from backdoor_lab.tables.markup import TextTable, html_page, in_latex, in_markdown
from backdoor_lab.tables.sheets import csv_text, guarded
from tests.helpers.hostile import NAMES
from tests.helpers.written import cells_of, sweep_of, write_everything

MARKDOWN = MarkdownIt("commonmark").enable(["table", "strikethrough"])
UNSEEN = re.compile("[^\t\n -~\xa0-\U0010ffff]|[\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
# LaTeX that is known to be harmless, with the text it shows.
TEX = {
    r"\\textbackslash\{\}": "\\", r"\\\{": "{", r"\\\}": "}", r"\\_": "_", r"\\%": "%", r"\\&": "&",
    r"\\#": "#", r"\\\$": "$", r"\\textasciicircum\{\}": "^", r"\\textasciitilde\{\}": "~",
    r"\\textless\{\}": "<", r"\\textgreater\{\}": ">", r"\\textbar\{\}": "|", r"\{\*\}": "*",
    r"\{`\}": "`", r"\{\[\}U\+([0-9A-F]{4,6})\{\]\}": None, r"\{\[\}": "[", r"\{\]\}": "]",
    r"''": '"', r"\{\}": "", r"([-A-Za-z0-9 .:;!?()/=+@',])": None,
}  # fmt: skip


def grid_of(name: str) -> TextTable:
    return TextTable(name, [name, "Nat1"], [[name, "99.5"], ["x", name]], [name, f"{name} b"], 1,
                frozenset({(0, 1)}))  # fmt: skip


def shown(name: str) -> list[str]:
    """Every text of the grid, in order."""
    return [*map(str.strip, map(plain, [
        name, name, "Nat1", name, "99.5", "x", name, name, f"{name} b",
    ]))]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_name_is_plain_text_in_markdown(name: str) -> None:
    tokens = MARKDOWN.parse(in_markdown(grid_of(name)))
    kinds = {token.type.removesuffix("_open").removesuffix("_close") for token in tokens}
    assert kinds <= {"heading", "table", "thead", "tbody", "tr", "th", "td", "inline",
                     "bullet_list", "list_item", "paragraph"}  # fmt: skip
    inline = [token.children or [] for token in tokens if token.type == "inline"]
    found = {each.type for line in inline for each in line}
    assert found <= {"text", "strong_open", "strong_close"}
    texts = ["".join(each.content for each in line).strip() for line in inline]
    assert [text for text in texts if text] == [text for text in shown(name) if text]
    # Some renderers turn these into links or formulas.
    assert not re.search(r"\w://|\bwww\.|(?<!\\)[$~]", in_markdown(grid_of(name)))


def tex_shows(text: str) -> str:
    """The text that LaTeX shows. Fails if LaTeX would do anything else."""
    said = []
    while text:
        for pattern, sign in TEX.items():
            if found := re.match(pattern, text):
                code = found.group(1) if found.groups() else ""
                said.append(sign if sign is not None
                            else chr(int(code, 16)) if len(code) > 1 else code)  # fmt: skip
                text = text[found.end() :]
                break
        else:
            raise AssertionError(f"LaTeX acts on {text[:40]!r}")
    return "".join(said)


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_name_is_plain_text_in_latex(name: str) -> None:
    lines = in_latex(grid_of(name)).splitlines()
    title = lines[2].removeprefix(r"\caption{").removesuffix("}")
    at = lines.index(r"\toprule")
    rows = [lines[at + 1], *lines[at + 3 : at + 5]]
    assert lines[at + 2 : at + 6 : 3] == [r"\midrule", r"\bottomrule"]
    assert all(row.endswith(r" \\") for row in rows)
    cells = [cell for row in rows for cell in row.removesuffix(r" \\").split(" & ")]
    assert cells[3] == r"\textbf{99.5}"
    cells[3] = "99.5"
    notes = [line.removesuffix(r"\par") for line in lines[at + 8 : at + 10]]
    found = [tex_shows(text).strip() for text in (title, *cells, *notes)]
    assert found == shown(name)
    # Ligatures would show other characters than the name has.
    assert not re.search(r"--|,,|[?!]`", "\n".join([title, *cells, *notes]))


class Texts(html.parser.HTMLParser):
    """The text between the tags of the body, and the tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.kinds: set[tuple[str, ...]] = set()
        self.feed(text.partition("<body>")[2])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.kinds.add((tag, *(f"{key}={value}" for key, value in attrs)))
        if tag in ("h3", "th", "td", "p"):
            self.texts.append("")

    def handle_data(self, data: str) -> None:
        if self.texts:
            self.texts[-1] += data


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_name_is_plain_text_in_html(name: str) -> None:
    found = Texts(html_page(name, [grid_of(name)]))
    assert found.kinds == {("h3",), ("table",), ("tr",), ("th",), ("td",), ("p",),
                           ("th", "class=name"), ("td", "class=name"),
                           ("td", "class=best")}  # fmt: skip
    assert [text.strip() for text in found.texts] == shown(name)


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_name_is_plain_text_in_csv(name: str) -> None:
    text = csv_text([name, "b"], [[name, 1], [f"x{name}", -0.5]])
    lines = list(csv.reader(io.StringIO(text.replace("\r", "\n"))))
    assert [line[1:] for line in lines] == [["b"], ["1"], ["-0.5"]]
    assert all(guarded(cell) == cell for line in lines for cell in line)
    assert not UNSEEN.search(text)


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_name_is_plain_text_on_a_terminal(name: str, tmp_path: Path) -> None:
    assert plain(name).isprintable()
    entry = logging.LogRecord("a", logging.INFO, "", 0, "%s: %s", (name, name), None)
    for handler in (Terminal(), LogFile(tmp_path / "x.log", delay=True)):
        assert all(line.isprintable() for line in handler.format(entry).split("\n"))


def test_no_command_prints_or_writes_a_hostile_name_unescaped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every sixth hostile name is put into all texts of a sweep, and every command that prints
    tables runs on it."""
    for number, name in enumerate(NAMES[::6]):
        folder = tmp_path / str(number)
        write_everything(folder, sweep_of(folder, name))
        said = capsys.readouterr()
        assert all(line.isprintable() for line in (said.out + said.err).split("\n")), repr(name)
        paths = [*folder.rglob("*")]
        assert {path.suffix for path in paths} >= {".md", ".tex", ".html", ".csv"}
        for path in paths:
            if path.suffix in (".md", ".tex", ".html"):
                lines = path.read_text().split("\n")
                assert all(line.isprintable() for line in lines), (name, path.name)
        for file, cell in cells_of(folder):
            assert guarded(cell) == cell, f"{file}: {cell!r}"
            assert not UNSEEN.search(cell), f"{file}: {cell!r}"
