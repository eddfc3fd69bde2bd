"""The installed package works without a checkout: the wheel contains all that it needs."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest
import yaml

from backdoor_lab import __version__
from tests.helpers.cells import TINY, environment

ROOT = Path(__file__).parents[2]


def run(cwd: Path, *words: str, **changes: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words, cwd=cwd, env=environment(**changes), capture_output=True, text=True, timeout=240,
        check=False,
    )  # fmt: skip


def build(kind: str, to: Path) -> Path:
    done = run(ROOT, sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(to))
    assert done.returncode == 0, done.stderr
    (made,) = to.iterdir()
    return made


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the wheel is installed into, without its dependencies."""
    folder = tmp_path_factory.mktemp("installed")
    install = ("install", "--quiet", "--no-deps", "--no-index", "--target", str(folder), str(wheel))
    done = run(folder, sys.executable, "-m", "pip", *install)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_wheel_contains_the_configurations_and_all_data_files_of_the_package(
    wheel: Path,
) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    ours = {path.relative_to(ROOT).as_posix() for path in (ROOT / "conf").rglob("*.yaml")}
    assert ours
    assert {f"backdoor_lab/{name}" for name in ours} <= names
    tables = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "backdoor_lab/fidelity").rglob("*.yaml")
    }
    assert len(tables) > 20
    assert {"backdoor_lab/identity.json", "backdoor_lab/py.typed", *tables} <= names


def test_the_installed_fidelity_table_agrees_with_the_installed_code(
    site: Path, tmp_path: Path
) -> None:
    done = run(tmp_path, sys.executable, "-m", "backdoor_lab.fidelity", PYTHONPATH=str(site))
    assert (done.returncode, done.stderr) == (0, "")


def test_the_metadata_states_version_license_and_supported_python_versions(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (each for each in archive.namelist() if each.endswith(".dist-info/METADATA"))
        said = HeaderParser().parsestr(archive.read(name).decode())
    assert (said["Version"], said["License-Expression"]) == (__version__, "MIT")
    assert said["Requires-Python"] == ">=3.11"
    classifiers = said.get_all("Classifier") or []
    assert "Typing :: Typed" in classifiers
    assert "Programming Language :: Python :: 3.11" in classifiers


def test_the_installed_command_runs_a_cell_in_an_empty_folder(site: Path, tmp_path: Path) -> None:
    script = str(site / "bin" / "backdoor-lab")
    done = run(tmp_path, script, "experiment=smoke", *TINY, PYTHONPATH=str(site))
    assert done.returncode == 0, done.stderr
    (record,) = tmp_path.rglob("record.json")
    found = json.loads(record.read_text())
    assert found["status"] == "done"
    assert found["run"]["versions"]["backdoor_lab"] == __version__


def test_the_installed_package_is_the_one_that_runs(site: Path, tmp_path: Path) -> None:
    code = (
        "import backdoor_lab, sys; from backdoor_lab.run import main;"
        "sys.argv = ['x', 'experiment=demo', '--cfg', 'job'];"
        "from backdoor_lab.templates import render;"
        "print(backdoor_lab.__file__, len(render('tables.html', title='t', grids=[]))); main()"
    )
    done = run(tmp_path, sys.executable, "-c", code, PYTHONPATH=str(site))
    assert done.returncode == 0, done.stderr
    assert str(site) in done.stdout
    assert "name: demo" in done.stdout
    check = (sys.executable, "-m", "backdoor_lab.identity")
    assert run(tmp_path, *check, PYTHONPATH=str(site)).stdout == (
        "the code matches identity.json\n"
    )


def test_a_typed_program_that_uses_the_package_passes_mypy(site: Path, tmp_path: Path) -> None:
    """mypy uses the annotations only if the package has `py.typed`. Without it, mypy reports a
    missing marker."""
    program = tmp_path / "mine.py"
    program.write_text(
        "from backdoor_lab.core.errors import many\n\nreveal_type(many(2, 'image'))\n"
    )
    words = ("-m", "mypy", "--strict", "--no-incremental", "--cache-dir", str(tmp_path / "cache"))
    done = run(tmp_path, sys.executable, *words, str(program), MYPYPATH="", PYTHONPATH=str(site))
    assert 'Revealed type is "str"' in done.stdout.replace("builtins.", ""), done.stdout


def test_the_source_archive_contains_identity_json_and_the_citation(tmp_path: Path) -> None:
    with tarfile.open(build("sdist", tmp_path)) as opened:
        names = opened.getnames()
    for wanted in ("backdoor_lab/identity.json", "backdoor_lab/py.typed", "CITATION.cff"):
        assert any(name.endswith(wanted) for name in names), wanted


def test_the_citation_file_and_the_changelog_contain_the_current_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors", "date-released", "license"} <= citation.keys()
    sections = (ROOT / "CHANGELOG.md").read_text().split("\n## ")[1:]
    latest = next(each for each in sections if not each.startswith("Unreleased\n"))
    assert latest.startswith(f"{__version__} ({citation['date-released']})\n")
