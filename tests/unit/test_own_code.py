"""If a user's own trigger or defense raises an error, one line names it and the place."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from backdoor_lab.identity.own_code import own_code_error
from tests.helpers.cells import TINY, environment
from tests.helpers.project import ROOT

TRIGGER = """
from backdoor_lab.attacks.base import Trigger
class Mine(Trigger):
    def __init__(self, *, where: int = 0) -> None:
        self.where = {"a": 1}[%s]
    def apply_test(self, images):
        images[:, :, %s] = 0
        return images
"""
FILTER = """
from backdoor_lab.defenses.base import ClassScores, SampleFilter
class Mine(SampleFilter):
    def score_class(self, values, label, known):
        return ClassScores(values.nomr(dim=1))
"""
REPAIR = """
from backdoor_lab.defenses.networks import ModelRepair
class Mine(ModelRepair):
    def repair(self, context):
        return len(7)
"""
FILES = {
    "attacks/outside.py": TRIGGER % ('"a"', "999"),
    "attacks/building.py": TRIGGER % ('"b"', "0"),
    "attacks/importing.py": TRIGGER % ('"a"', "0") + "undefined_name\n",
    "attacks/misspelled.py": TRIGGER % ('"a"', "0") + "def broken(:\n",
    "defenses/scoring.py": FILTER,
    "defenses/repairing.py": REPAIR,
}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with the components of `FILES`."""
    where = tmp_path_factory.mktemp("copy")
    for folder in ("backdoor_lab", "conf"):
        shutil.copytree(ROOT / folder, where / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for path, text in FILES.items():
        folder, name = Path(path).parent.name, Path(path).stem
        group = "trigger" if folder == "attacks" else "defense"
        (where / "backdoor_lab" / path).write_text(dedent(text).lstrip())
        (where / "conf" / group / f"{name}.yaml").write_text(
            f"_target_: backdoor_lab.{folder}.{name}.Mine\nname: {name}\n"
        )
    return where


def run(copy: Path, cwd: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "backdoor_lab", *TINY, *words], cwd=cwd, text=True,
        env=environment(PYTHONPATH=str(copy), **more), capture_output=True, timeout=240,
        check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "line", "said"),
    [
        ("outside", 6, "IndexError: index 999 is out of bounds"),
        ("building", 4, "KeyError: 'b'"),
        ("importing", 8, "NameError: name 'undefined_name' is not defined"),
        ("misspelled", 8, "SyntaxError: "),
    ],
)
def test_an_error_in_a_user_defined_trigger_during_the_checks_is_printed_in_one_line(
    copy: Path, tmp_path: Path, name: str, line: int, said: str
) -> None:
    done = run(copy, tmp_path, f"trigger={name}")
    assert done.returncode == 2, done.stderr
    (text,) = [each for each in done.stderr.splitlines() if "not in identity" not in each]
    assert text.startswith(f"error: `trigger={name}`: backdoor_lab/attacks/{name}.py:{line} raised")
    assert said in text
    assert text.endswith("(HYDRA_FULL_ERROR=1 prints the traceback)")
    assert not [*tmp_path.rglob("record.json")]


def test_the_environment_variable_hydra_full_error_makes_the_command_print_the_traceback(
    copy: Path, tmp_path: Path
) -> None:
    done = run(copy, tmp_path, "trigger=outside", HYDRA_FULL_ERROR="1")
    assert done.returncode == 2
    assert "images[:, :, 999] = 0" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: `trigger=outside`")


@pytest.mark.parametrize(
    ("name", "line", "said"), [("scoring", 4, "AttributeError"), ("repairing", 4, "TypeError")]
)
def test_an_error_in_a_user_defined_defense_makes_the_cell_fail(
    copy: Path, tmp_path: Path, name: str, line: int, said: str
) -> None:
    done = run(copy, tmp_path, f"defense={name}", "protocol.clean_holdout=20", "hydra.run.dir=here")
    assert done.returncode == 1, done.stderr
    record = json.loads((tmp_path / "here/record.json").read_text())
    place = f"`defense={name}`: backdoor_lab/defenses/{name}.py:{line} raised {said}: "
    assert record["status"].startswith(f"failed: {place}")
    assert record["error"].startswith(place)
    # One line on the terminal, the traceback in the cell's log.
    assert "Traceback" not in done.stdout + done.stderr
    assert "traceback in the cell's log file" in done.stdout
    assert "Traceback" in (tmp_path / "here/backdoor_lab.log").read_text()


def test_only_an_error_that_passed_through_the_file_of_the_component_is_explained() -> None:
    """Also for components in identity.json, which a user's own are after --accept."""
    from backdoor_lab.attacks.warp import WaNet

    with pytest.raises(AttributeError) as found:
        WaNet().apply_test(None)  # type: ignore[arg-type]
    chosen = {"trigger": {"_target_": "backdoor_lab.attacks.warp.WaNet", "name": "warp"}}
    text = str(own_code_error(found.value, chosen))
    assert text.startswith("`trigger=warp`: backdoor_lab/attacks/warp.py:")
    assert "raised AttributeError" in text
    other = {"trigger": {"_target_": "backdoor_lab.attacks.patch.Patch", "name": "patch"}}
    assert own_code_error(found.value, other) is None
