"""tests/plugin_example, an installed package with a trigger and a defense: trust, and a sweep."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.cells import TINY, environment
from tests.helpers.program import MANY
from tests.helpers.project import ROOT

MARK = "\nimport pathlib\npathlib.Path({!r}).touch()\n"
CHOSEN = ("trigger=example_corners", "defense=example_norm")
TRUST = "allow_plugins=[plugin_example]"


class Site:
    """The package, installed in a folder `path` that is on the path of the commands run by
    `many`. The file `imported` exists if the package was imported."""

    def __init__(self, base: Path) -> None:
        self.path, self.imported, self.base = base / "site", base / "imported", base
        source = base / "source"
        shutil.copytree(ROOT / "tests/plugin_example", source)
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "--quiet", "--no-build-isolation",
             "--no-deps", "--no-index", "--no-compile", "--disable-pip-version-check",
             "--target", str(self.path), str(source)],
            check=True, timeout=300,
        )  # fmt: skip
        code = self.path / "plugin_example/__init__.py"
        code.write_text(code.read_text() + MARK.format(str(self.imported)))

    def many(self, *commands: list[str]) -> list[Any]:
        """Exit code, output and errors of each command, which all run in one new process."""
        run = subprocess.run(
            [sys.executable, "-c", MANY], input=json.dumps(commands), cwd=self.base,
            env=environment(PYTHONPATH=f"{self.path}:{ROOT}", PYTHONDONTWRITEBYTECODE="1"),
            capture_output=True, text=True, timeout=900, check=True,
        )  # fmt: skip
        found: list[Any] = json.loads(run.stdout.splitlines()[-1])[0]
        return found

    def run(self, *words: str) -> str:
        """Runs a sweep that must succeed, and returns what it printed. Not with `many`: the workers
        of a sweep are separate processes."""
        done = subprocess.run(
            [sys.executable, "-m", "backdoor_lab", "-m", *TINY, *words], cwd=self.base,
            env=environment(PYTHONPATH=f"{self.path}:{ROOT}", PYTHONDONTWRITEBYTECODE="1"),
            capture_output=True, text=True, timeout=800, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def records(self) -> dict[str, dict[str, Any]]:
        """The records in the folder of the sweep, by the id of their cell."""
        found = self.base.glob("sweep/*/record.json")
        return {path.parent.name: json.loads(path.read_text()) for path in found}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("plugin"))


def test_an_untrusted_package_is_not_imported_and_the_error_says_what_to_type(site: Site) -> None:
    commands = [
        ["trigger=example_corners"],
        ["defense=example_norm", "allow_plugins=[other]"],
        ["-m", "trigger=pixel,example_corners"],
        ["trigger._target_=plugin_example.corners.Corners"],
        ["+model.factory=plugin_example.corners:make"],
        ["--help"],
    ]
    found = site.many(*commands)
    assert [each[0] for each in found] == [2, 2, 2, 2, 2, 0]
    for (_, out, said, _), more in zip(found[:3], ("", "other,", ""), strict=False):
        assert not out
        assert "is in the package plugin_example, which is installed but not trusted" in said
        assert f"add allow_plugins=[{more}plugin_example] to the command line\n" in said
        assert said.count("\n") == 1
    for _, _, said, _ in found[3:5]:
        assert TRUST in said
        assert "nothing was imported" in said
    assert "example_corners" not in found[5][1]
    assert not site.imported.exists()


def test_the_conf_folder_of_a_trusted_package_joins_the_search_path(site: Site) -> None:
    shown = site.many([TRUST, *CHOSEN, "--cfg", "job"], [TRUST, "--help"])
    (code, out, said, _), (_, text, _, _) = shown
    assert (code, said) == (0, "")
    # The first from its YAML file, the second from the defaults of the class.
    assert "  name: example_corners\n  size: 2\n  color: 200\n" in out
    assert "  _target_: plugin_example.norm.FeatureNorm\n  name: example_norm\n  power: 1.0" in out
    assert "example_corners" in text
    assert "example_norm" in text


@pytest.mark.timeout(2500)
def test_a_sweep_with_a_package_and_a_file_runs_in_workers_and_an_edit_makes_new_cells(
    site: Site,
) -> None:
    (site.base / "own.py").write_text(
        "from backdoor_lab.defenses.base import ClassScores, SampleFilter\n\n\n"
        "class OwnScore(SampleFilter):\n    def score_class(self, values, label, known):\n"
        "        return ClassScores(values.amax(dim=1))\n"
    )
    sweep = [TRUST, "plugins=[own.py]", "hydra.sweep.dir=sweep", "trigger=example_corners"]
    joblib = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    said = site.run(*sweep, *joblib, "defense=example_norm,own_score")
    assert site.imported.exists()
    assert "not in identity.json" not in said
    first = site.records()
    assert len(first) == 2
    by_defense = {each["choices"]["defense"]: each for each in first.values()}
    assert {each["status"] for each in first.values()} == {"done"}
    package, file = by_defense["own_score"]["run"]["plugins"][::-1]
    assert package["name"] == "plugin_example"
    assert (package["distribution"], package["version"]) == ("plugin-example", "1.2.3")
    assert (file["name"], file["file"]) == ("own", "own.py")
    assert [p["name"] for p in by_defense["example_norm"]["run"]["plugins"]] == ["plugin_example"]

    code_of = site.path / "plugin_example/corners.py"
    code_of.write_text(code_of.read_text() + "# A comment.\n")
    assert "1 of 1 cell already done" in site.run(*sweep, "defense=example_norm")
    assert len(site.records()) == 2

    # Any file of the package counts, also one that the trigger does not import.
    (site.path / "plugin_example/norm.py").write_text(
        (site.path / "plugin_example/norm.py").read_text().replace("dim=1)", "dim=1, p=1)")
    )
    site.run(*sweep, "defense=none")
    (new,) = (each for name, each in site.records().items() if name not in first)
    assert new["run"]["plugins"][0]["hash"] != package["hash"]
    # Poisoning runs again. Its images are the same, and therefore the network is, too.
    before = by_defense["example_norm"]["run"]["stages"]
    assert new["run"]["stages"]["poison"]["id"] != before["poison"]["id"]
    assert new["run"]["stages"]["train"]["id"] == before["train"]["id"]
