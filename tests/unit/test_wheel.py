"""The installed package works without a checkout: the wheel contains its configurations."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_wheel_runs_outside_the_checkout(tmp_path: Path) -> None:
    """Built, unpacked, and asked for its configuration."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
        names = set(archive.namelist())
    ours = {path.relative_to(ROOT).as_posix() for path in (ROOT / "conf").rglob("*.yaml")}
    assert {f"backdoor_lab/{name}" for name in ours} <= names
    assert "backdoor_lab/identity.json" in names
    settings = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    code = (
        "import backdoor_lab, sys; from backdoor_lab.run import main;"
        "sys.argv = ['x', 'experiment=demo', '--cfg', 'job'];"
        "from backdoor_lab.templates import render;"
        "print(backdoor_lab.__file__, len(render('tables.html', title='t', grids=[]))); main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=settings, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "site") in done.stdout
    assert "name: demo" in done.stdout
    check = [sys.executable, "-m", "backdoor_lab.identity"]
    done = subprocess.run(
        check, cwd=tmp_path, env=settings, capture_output=True, text=True, check=False
    )
    assert done.stdout == "the code is as identity.json says\n"


def test_the_source_archive_contains_identity_json(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        assert any(name.endswith("backdoor_lab/identity.json") for name in opened.getnames())
