"""Reads the code blocks of Markdown documents."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(r"(?m)^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```$", re.S)
FILE = re.compile(r"# ((?:(?:backdoor_lab|conf|plugin_example)/[\w/]+|[a-z]+)\.(?:py|yaml))\n")


@dataclass(frozen=True)
class Block:
    """A fenced code block: the number of its first line, its language (`bash` by default), and its
    text."""

    line: int
    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The path in the first line of the block, if the block is a file that the reader is told
        to write."""
        found = FILE.match(self.text)
        return found[1] if found and self.language in ("python", "yaml") else None


def blocks(document: Path) -> list[Block]:
    """The fenced blocks of a document, in order."""
    text = document.read_text(encoding="utf-8")
    found = []
    for each in FENCE.finditer(text):
        lines = each["text"].splitlines(keepends=True)
        body = "".join(line.removeprefix(each["indent"]) for line in lines)
        found.append(Block(text.count("\n", 0, each.start()) + 1, each["language"] or "bash", body))
    return found
