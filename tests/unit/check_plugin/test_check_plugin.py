"""python -m backdoor_lab.check_plugin: what it finds in files with mistakes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from backdoor_lab.check_plugin.__main__ import main
from backdoor_lab.plugins.trust import Trust, trust

TRIGGERS = """
import torch
from backdoor_lab.attacks.base import Trigger
from backdoor_lab.core.errors import ConfigError

class Good(Trigger):
    def __init__(self, *, row: int = 0) -> None:
        self.row = row
    def apply_test(self, images):
        images[:, :, self.row] = 255 - images[:, :, self.row]
        return images

class RandomStripe(Good):
    def apply_test(self, images):
        images[:, :, 0] = torch.randint_like(images[:, :, 0], 256)
        return images

class Unsendable(Good):
    def __init__(self, *, row: int = 0) -> None:
        super().__init__(row=row)
        self.function = lambda x: x

class Unclear(Good):
    def check_image_size(self, channels, height, width):
        if height < 4:
            raise ConfigError("no")

class Failing(Good):
    def apply_test(self, images):
        return images[0, 0, 0, 0, 0]
"""
DEFENSES = """
import torch
from backdoor_lab.defenses.base import ClassScores, SampleFilter

class Naming(SampleFilter):
    def score_class(self, values, label, known):
        return ClassScores(values.norm(dim=1) * len(known.classes[label]))

class Ordered(SampleFilter):
    def score_class(self, values, label, known):
        return ClassScores(values.norm(dim=1) + torch.arange(len(values)))
"""
OTHERS = """
import numpy as np
import torch
from torch import nn
from backdoor_lab.data.base import Arrays, Source, Split

class Gray(Source):
    def __init__(self, *, name: str = "gray", shift: int = 0) -> None:
        super().__init__(name=name)
        self.shift = shift
    def identity(self):
        return {"shift": self.shift}
    def known_classes(self):
        return ("a", "b", "c")[:2 + self.shift]
    def read(self):
        images = np.arange(8 * 16, dtype=np.uint8).reshape(8, 1, 4, 4)
        split = Split(images, np.arange(8) % 2)
        return Arrays(split, split, ("a", "b"))
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    Path("marks.py").write_text(TRIGGERS)
    Path("scores.py").write_text(DEFENSES)
    Path("others.py").write_text(OTHERS)
    yield
    trust(Trust())


def failures(said: str) -> dict[str, list[str]]:
    """The failed checks of each method, without the reasons."""
    found: dict[str, list[str]] = {}
    for line in said.splitlines()[:-1]:
        if not line.startswith(" "):
            found[method := line.partition(" ")[0]] = []
        elif line.startswith("  FAILED"):
            found[method].append(line.removeprefix("  FAILED  ").partition(":")[0])
    return found


def test_every_mistake_in_a_trigger_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["marks.py", "trigger.row=1"]) == 1
    said = capsys.readouterr().out
    found = failures(said)
    assert found["trigger=good"] == ["accepts or refuses small images"]  # There is no row 1.
    assert "is deterministic" in found["trigger=random_stripe"]
    assert found["trigger=unsendable"][-1] == "can be pickled"
    assert "the refusal of 1x1 names neither size nor channels: no" in said
    assert "marks.py:30 raised IndexError" in said
    assert said.splitlines()[-1].startswith("55 checks, ")


def test_every_mistake_in_a_defense_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scores.py"]) == 1
    said = capsys.readouterr().out
    assert failures(said) == {
        "defense=naming": ["does not depend on class names"],
        "defense=ordered": ["does not depend on the order of the images"],
    }
    assert "the result depends on the names of the classes" in said


def test_a_data_set_is_read_and_validated(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["others.py"]) == 0
    assert "5 checks, none failed" in capsys.readouterr().out
    assert main(["others.py", "dataset.shift=1"]) == 1
    said = capsys.readouterr().out
    assert failures(said) == {"dataset=gray": ["knows its classes"]}
    assert "known_classes is ('a', 'b', 'c'), but reading yields ('a', 'b')" in said


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("missing.py", "missing.py does not exist"),
        ("missing", "plug-in 'missing' is not known"),
        ("empty.py", "empty.py has no trigger, defense or data set"),
    ],
)
def test_what_is_not_a_plugin_is_refused(
    name: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty.py").write_text("")
    assert main([name]) == 2
    assert said in capsys.readouterr().err
