"""Every code block of README and of the guides runs at a reduced size and prints the shown lines.

The blocks run in a copy of the project, in the order of their document: commands in the shell, and
Python in the interpreter. A block whose first line is a path in a comment is written to that path.
A `text` block shows the output of the block before it. Its lines must be printed in this order, and
`…` stands for any text.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.documents.project import documents
from tests.helpers.blocks import Block, blocks
from tests.helpers.cells import environment
from tests.helpers.forking import forking, write_python
from tests.helpers.project import ROOT

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CODE = {"bash", "python", "toml", "yaml"}
SHOWN = {"text", "bibtex"}
RUNS = r"experiment=smoke|root=photos"
PRINTS = r"--cfg|--help|dry_run=true"
#: Overrides for `python -m backdoor_lab`, by a pattern that its arguments match.
TRIAL = [
    (r"^(?!.*(--cfg|--help))", ["trainer=cpu", "trainer.threads=1"]),
    # A narrow network, few images, and one epoch for the commands that compute cells.
    (r"^(?!.*(--cfg|--help|torchvision|timm|model=module))", ["model.width=8"]),
    (RUNS, ["recipe.epochs=1"]),
    (r"experiment=(?!report|readings|photographs|cifar10)(?!.*dataset[.=])",
     ["dataset.per_class_train=100", "dataset.per_class_test=40"]),
    # Other sweeps take hours of a core. Their cells are only composed, checked and estimated.
    (rf"^(?!.*({RUNS}|{PRINTS}))", ["dry_run=true"]),
    # Without this override, CIFAR-10 would be downloaded.
    (r"^(?!.*(--cfg|--help|dataset=|experiment=(?!report|readings)))", ["dataset=synthetic_small"]),
]  # fmt: skip
#: (document, first line of a block) -> why the block is not run here.
EXCEPTIONS = {
    ("tests/README.md", "BACKDOOR_LAB_DEMO= python -m pytest tests/torture/test_kill_demo.py -s"): (
        "runs the demo eleven times and kills it ten times, which takes most of an hour"
    ),
    (
        "backdoor_lab/plugins/README.md",
        "python -m pip install --no-deps --editable tests/plugin_example",
    ): ("installs a package, as tests/unit/plugins/test_example_package.py does in a new folder"),
    ("backdoor_lab/tables/README.md", "import torch, torchvision"): (
        "loads a network of full width; tests/unit/test_export_weights.py runs it without training"
    ),
}
#: Commands that are replaced here by a command with the same output -> why.
PRINTED_BY = {
    "make demo": (
        "python -m backdoor_lab.reports multirun_reports/demo/report",
        "24 training runs take a minute; these are the tables of its committed records",
    ),
}
DOCUMENTS = [path for path in documents() if blocks(path)]


def name_of(document: Path) -> str:
    return document.relative_to(ROOT).as_posix()


def photos(folder: Path, classes: Sequence[str], size: tuple[int, int]) -> None:
    """A reader's own images: 40 training and 12 test images of each class."""
    random = np.random.default_rng(0)
    for number, label in enumerate(classes):
        for part, count in (("train", 40), ("test", 12)):
            (folder / part / label).mkdir(parents=True)
            for index in range(count):
                pixels = random.normal(60 + 15 * number, 20, (*size, 3)).clip(0, 255)
                image = Image.fromarray(pixels.astype("uint8"))
                image.save(folder / part / label / f"{index:03}.png")


def archive(path: Path, folder: Path) -> None:
    """An archive of images that takes the place of CIFAR-10's."""
    photos(folder, CIFAR10, (32, 32))
    path.parent.mkdir(parents=True)
    with tarfile.open(path, "w:xz", preset=0) as opened:
        opened.add(folder, arcname=".")


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the project, with a folder of photos and a `python` that need not import torch
    again."""
    base = tmp_path_factory.mktemp("documents")
    where = base / "project"
    ignored = shutil.ignore_patterns("__pycache__", "runs", ".store")
    for folder in ("backdoor_lab", "conf", "tests", "multirun_reports"):
        shutil.copytree(ROOT / folder, where / folder, ignore=ignored)
    for name in ("Makefile", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, where)
    photos(where / "photos", ("cat", "dog", "owl"), (20, 24))
    archive(where / "path/to/cifar10-jpeg.tar.xz", base / "cifar10-jpeg")
    write_python(where / ".venv/bin/python", base / "socket")
    (where / ".venv/bin/activate").write_text('PATH="$PWD/.venv/bin:$PATH"\n')
    (where / ".venv/.ready").touch()
    with forking(base / "socket", where, settings(where)):
        yield where


def settings(copy: Path) -> dict[str, str]:
    path = f"{copy}/.venv/bin:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return environment(PYTHONPATH=str(copy), PATH=path, TRIAL=json.dumps(TRIAL), NO_COLOR="1")


def run(copy: Path, block: Block) -> str:
    """Runs a block and returns its output. Fails unless the exit code is 0."""
    command = ["bash", "-euo", "pipefail", "-c", block.text]
    if block.language == "python":
        command = ["python", "-c", block.text]
    done = subprocess.run(
        command, cwd=copy, env=settings(copy), capture_output=True, text=True, timeout=400,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{block.text}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def prints(said: str, expected: str) -> bool:
    """Whether the lines of `expected` are among those of `said`, in this order."""
    lines = iter(said.splitlines())
    return all(
        any(re.fullmatch(re.escape(want).replace("…", ".*"), line.rstrip()) for line in lines)
        for want in (line.rstrip() for line in expected.splitlines())
        if want
    )


@pytest.mark.timeout(900)
@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_block_of_a_document_runs_and_prints_the_shown_lines(
    copy: Path, document: Path
) -> None:
    said, ran, written = "", 0, []
    for block in blocks(document):
        assert block.language in CODE | SHOWN, f"line {block.line}: {block.language}"
        first = block.text.splitlines()[0]
        if (name_of(document), first) in EXCEPTIONS:
            said = ""
        elif block.file:
            written.append(copy / block.file)
            written[-1].parent.mkdir(parents=True, exist_ok=True)
            written[-1].write_text(block.text)
        elif block.language == "text":
            assert prints(said, block.text), f"line {block.line}: the output is\n{said}"
        elif block.language in ("bash", "python"):
            said = run(copy, shown_by(block))
        elif block.language == "toml":
            assert tomllib.loads(block.text), f"line {block.line}: empty"
        elif block.language == "yaml":
            assert yaml.safe_load(block.text), f"line {block.line}: empty"
        else:
            assert block.language == "bibtex"
            continue
        ran += 1
    for path in written:
        path.unlink()
    # A block may have listed the written files in identity.json.
    shutil.copy(ROOT / "backdoor_lab/identity.json", copy / "backdoor_lab/identity.json")
    assert ran


def shown_by(block: Block) -> Block:
    """The block with the commands in PRINTED_BY replaced."""
    text = block.text
    for command, (other, _) in PRINTED_BY.items():
        text = re.sub(rf"(?m)^{re.escape(command)}(?=$| )", other, text)
    return Block(block.line, block.language, text)


def test_every_code_block_listed_as_an_exception_exists_in_its_document() -> None:
    first = {(name_of(path), b.text.splitlines()[0]) for path in DOCUMENTS for b in blocks(path)}
    assert EXCEPTIONS.keys() <= first
    text = "\n".join(b.text for path in DOCUMENTS for b in blocks(path))
    for command in PRINTED_BY:
        assert re.search(rf"(?m)^{re.escape(command)}(?=$| )", text), command


def test_every_pattern_for_shortening_commands_matches_a_documented_command() -> None:
    text = "\n".join(b.text for path in DOCUMENTS for b in blocks(path) if b.language == "bash")
    text = text.replace("\\\n", " ").replace("make demo", "python -m backdoor_lab experiment=demo")
    commands = re.findall(r"python -m backdoor_lab (.*)", text)
    for pattern, _ in TRIAL:
        assert any(re.search(pattern, said) for said in commands), pattern


def test_a_failing_command_in_a_block_is_an_error(copy: Path) -> None:
    with pytest.raises(AssertionError, match="error: "):
        run(copy, Block(1, "bash", "python -m backdoor_lab trigger=nothing\n"))


def test_printed_lines_are_compared_with_those_in_the_document_in_order() -> None:
    assert prints("a\nbc\nd\n", "a\nb…\n")
    assert not prints("a\nbc\nd\n", "bc\na\n")
    assert not prints("a\n", "b\n")
