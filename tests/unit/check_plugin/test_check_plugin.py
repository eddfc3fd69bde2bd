"""python -m backdoor_lab.check_plugin: what it finds in files with mistakes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from backdoor_lab.check_plugin.__main__ import main
from backdoor_lab.plugins.trust import Trust, trust
from tests.helpers.blocks import blocks
from tests.helpers.project import PACKAGE

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


ONCE = """
from backdoor_lab.attacks.base import Trigger

class Raising(Trigger):
    def apply_test(self, images):
        return images[99]

class Flat(Trigger):
    def apply_test(self, images):
        return images.flatten(1)

class Needing(Trigger):
    def __init__(self, *, size: int) -> None:
        self.size = size
    def apply_test(self, images):
        return images

class Lacking(Trigger):
    pass
"""


def test_a_failure_in_one_method_is_explained_once(capsys: pytest.CaptureFixture[str]) -> None:
    Path("once.py").write_text(ONCE)
    assert main(["once.py"]) == 1
    said = capsys.readouterr().out
    found = failures(said)
    assert said.count("once.py:6 raised IndexError") == 1
    assert said.count("`once.Flat.apply_test` must return uint8 images") == 1
    assert said.count("not checked, see 'keeps shape and dtype, and changes pixels' above") == (
        len(found["trigger=raising"]) + len(found["trigger=flat"]) - 2
    )
    assert found["trigger=needing"] == found["trigger=lacking"] == ["can be made"]
    assert "`trigger.size` has no value: give the parameter of `__init__` a default, or set" in said
    assert (
        "once.Lacking is not a class that can be used here: it lacks the method apply_test" in said
    )


SET = """
import numpy as np
from backdoor_lab.data.base import Arrays, Source, Split
half = Split(np.arange(64, dtype=np.uint8).reshape(4, 1, 4, 4), np.arange(4) % 2)

class Rings(Source):
    def __init__(self, *, name: str = "rings") -> None:
        super().__init__(name=name)
    def identity(self):
        return {}
    def read(self):
        return Arrays(half, half, ("a", "b"))
"""
CALL = "`Rings.__init__` must call `super().__init__(name=name, limit_train=limit_train,"
MISTAKES = {
    "super().__init__(name=name)|self.name = name": f"{CALL} limit_test=limit_test)`, of which the"
    " limits may be left out, but does not call it",
    "super().__init__(name=name)|super().__init__()": f"{CALL} limit_test=limit_test)`, of which"
    " the limits may be left out, but gives no name",
    "return {}|return []": "`rings.Rings.identity` must return a dict that JSON can store, got list"
    " of length 0",
    "Arrays(half, half, (|(half, half, (": "`rings.Rings.read` must return Arrays(Split(images,"
    " labels), Split(images, labels), classes), got tuple of length 3",
    "Arrays(half, half, (|Arrays(half, (1, 2), (": "`rings.Rings.read` must return Arrays whose"
    " `test` is Split(images, labels), got tuple of length 2",
    "np.arange(4) % 2|[0, 1, 0, 1]": "`rings.Rings.read` must return Arrays whose `train.labels` is"
    " a NumPy array, int64 (N,), got list of length 4",
    '("a", "b")|["a", "b"]': "`rings.Rings.read` must return Arrays whose `classes` is a tuple of"
    " names, got list of length 2",
}


@pytest.mark.parametrize("change", MISTAKES)
def test_a_wrong_data_set_says_what_to_write(
    change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = change.split("|")
    assert SET.count(old) == 1
    Path("rings.py").write_text(SET.replace(old, new))
    assert main(["rings.py"]) == 1
    assert MISTAKES[change] in capsys.readouterr().out


def test_the_data_set_of_the_guide_is_complete(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = (each for each in blocks(PACKAGE / "plugins/README.md") if each.file == "bars.py")
    Path("bars.py").write_text(block.text)
    assert main(["bars.py", "dataset.count=5", "dataset.limit_train=3"]) == 0
    assert "5 checks, none failed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("missing.py", "missing.py does not exist"),
        (
            "missing",
            "called 'missing' and in one of the groups backdoor_lab.triggers, backdoor_lab",
        ),
        ("missing", ": install the package with python -m pip install --no-deps --editable FOLDER"),
        ("wrong_group", "(wrong_group.dots:Dot) in the group `backdoor_lab.trigger`, which is not"),
        ("empty.py", "empty.py has no trigger, defense or data set"),
    ],
)
def test_what_is_not_a_plugin_is_refused(
    name: str, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("empty.py").write_text("")
    Path("w-1.0.dist-info").mkdir()
    Path("w-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: w\nVersion: 1.0\n")
    Path("w-1.0.dist-info/entry_points.txt").write_text(
        "[backdoor_lab.trigger]\ndot = wrong_group.dots:Dot\n"
    )
    monkeypatch.syspath_prepend(str(Path.cwd()))
    assert main([name]) == 2
    assert said in capsys.readouterr().err
