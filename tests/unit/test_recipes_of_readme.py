"""README's instructions for writing a trigger and a defense, followed literally."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.cells import TINY, environment

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
OTHERS = {
    "backdoor_lab/defenses/plain.py": '''
        """A filter without a word on the protocol."""

        from torch import Tensor

        from backdoor_lab.defenses.base import SampleFilter, DefenderKnowledge, ClassScores


        class Plain(SampleFilter):
            """Takes no arguments at all, and is given the options all the same."""

            def __init__(self) -> None:
                super().__init__()

            def score_class(
                self, values: Tensor, label: int, known: DefenderKnowledge
            ) -> ClassScores:
                return ClassScores(values.double().square().sum(dim=1))


        class Lacking(SampleFilter):
            """Has no `score_class`."""
        ''',
    "backdoor_lab/defenses/rating.py": '''
        """A filter that looks at images."""

        from torch import Tensor

        from backdoor_lab.defenses.context import DefenseContext
        from backdoor_lab.defenses.networks import ModelBasedFilter, SampleScores


        class Bright(ModelBasedFilter):
            """Removes the brightest images."""

            def score_images(self, material: DefenseContext, where: Tensor) -> SampleScores:
                images = material.images(where, None)
                return SampleScores(images.double().flatten(1).mean(dim=1))
        ''',
    "backdoor_lab/defenses/mending.py": '''
        """A repair."""

        from torch import nn

        from backdoor_lab.defenses.context import DefenseContext
        from backdoor_lab.defenses.networks import ModelRepair


        class Nothing(ModelRepair):
            """Gives the network back as it is."""

            needs_clean = False

            def repair(self, material: DefenseContext) -> tuple[nn.Module, dict[str, object]]:
                return material.network(), {"said": "nothing"}
        ''',
    "conf/defense/plain.yaml": '''
        # A filter.
        _target_: backdoor_lab.defenses.plain.Plain
        name: plain
        ''',
    "conf/defense/lacking.yaml": '''
        # No filter yet.
        _target_: backdoor_lab.defenses.plain.Lacking
        name: lacking
        ''',
    "conf/defense/bright.yaml": '''
        # A filter of images.
        _target_: backdoor_lab.defenses.rating.Bright
        name: bright
        ''',
    "conf/defense/nothing.yaml": '''
        # A repair.
        _target_: backdoor_lab.defenses.mending.Nothing
        name: nothing
        ''',
}  # fmt: skip


def recipes() -> dict[str, str]:
    """The files shown in README's instructions, by the path in their first line."""
    blocks = re.findall(
        r"```(?:python|yaml)\n# ((?:backdoor_lab|conf)/\S+)\n(.*?)```", README, re.S
    )
    return dict(blocks)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with the files of the instructions and more files of the same kind."""
    from textwrap import dedent

    where = tmp_path_factory.mktemp("copy")
    for folder in ("backdoor_lab", "conf"):
        shutil.copytree(ROOT / folder, where / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in {**recipes(), **OTHERS}.items():
        (where / name).write_text(dedent(text).lstrip())
    return where


def run(copy: Path, cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    tiny = [word for word in TINY if not word.startswith(("dataset=", "recipe="))]
    return subprocess.run(
        [sys.executable, "-m", "backdoor_lab", *words, *tiny], cwd=cwd, text=True,
        env=environment(PYTHONPATH=str(copy)), capture_output=True, timeout=240, check=False,
    )  # fmt: skip


def records(cwd: Path) -> dict[str, dict[str, Any]]:
    found = [json.loads(path.read_text()) for path in cwd.rglob("record.json")]
    return {record["choices"]["defense"]: record for record in found}


def test_the_readme_shows_how_to_write_a_trigger_and_a_defense() -> None:
    assert set(recipes()) == {
        "backdoor_lab/attacks/stripe.py", "conf/trigger/stripe.yaml",
        "backdoor_lab/defenses/distance.py", "conf/defense/distance.yaml",
    }  # fmt: skip


def test_the_readme_components_run_and_follow_the_protocol(copy: Path, tmp_path: Path) -> None:
    """The YAML files of the components contain only `_target_` and `name`. The record contains
    the options that each filter applied."""
    done = run(
        copy, tmp_path, "-m", "experiment=smoke", "trigger=stripe",
        "defense=distance,plain,bright,nothing", "protocol.filter_scope=all",
        "protocol.removal_budget='2'", "protocol.max_removed='1'",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # The names of components differ from those in README, so only the rest is compared.
    (warning,) = re.findall(r"`code not in identity.json: distance, stripe(.*?)`", README, re.S)
    assert re.search(rf"code not in identity.json: .*{re.escape(warning)}\n", done.stdout)
    found = records(tmp_path)
    asked = {"filter_scope": "all", "removal_budget": "2", "max_removed": "1"}
    assert set(found) == {"distance", "plain", "bright", "nothing"}
    for name in ("distance", "plain", "bright"):
        # One image from each of ten classes.
        assert found[name]["counts"]["n_removed"] == 10
        assert found[name]["applied"] == asked
        assert asked.items() <= found[name]["protocol"].items()
    assert found["nothing"]["applied"] == {}
    assert found["nothing"]["notes"] == {"said": "nothing"}
    assert found["nothing"]["nat2"] == found["nothing"]["nat1"]


def test_a_command_line_option_overrides_the_protocol(copy: Path, tmp_path: Path) -> None:
    done = run(copy, tmp_path, "experiment=smoke", "defense=plain", "defense.removal_budget='3'")
    assert done.returncode == 0, done.stderr
    (record,) = records(tmp_path).values()
    assert (record["counts"]["n_removed"], record["applied"]["removal_budget"]) == (3, "3")
    assert record["protocol"]["removal_budget"] == "3"


def test_the_error_for_a_class_that_lacks_a_method_names_the_method(
    copy: Path, tmp_path: Path
) -> None:
    done = run(copy, tmp_path, "experiment=smoke", "defense=lacking")
    assert done.returncode == 2
    assert (
        "plain.Lacking is not a class that can be used here: it lacks the method score_class"
        in done.stderr
    )
    assert len(done.stderr.splitlines()) == 1
