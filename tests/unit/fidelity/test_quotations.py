"""Quotations of the authors' code are checked against checkouts of their repositories."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from backdoor_lab.fidelity.__main__ import main
from backdoor_lab.fidelity.table import Method, Row, Source


def method(source: Source) -> Method:
    row = Row("option", "x", 1, code=2, source=source, cost=10.0)
    said = ("Made", "reduced", "defenses/made.py", "A, 2020")
    return Method("made", "defense", *said, rows=(row,))


def quoting(folder: Path, monkeypatch: pytest.MonkeyPatch, token: str, line: int) -> list[str]:
    """The arguments that check one quotation of owner/name in `folder`."""
    source = Source("owner/name", "0123456", "code/a.py", line, token)
    found = {"made": method(source)}
    monkeypatch.setattr("backdoor_lab.fidelity.__main__.methods", lambda: found)
    return ["--sources", str(folder)]


@pytest.mark.parametrize("name", ["owner+name", "name"])
def test_quotations_are_compared_with_checkouts_of_the_authors_repositories(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / name / "code/a.py"
    file.parent.mkdir(parents=True)
    file.write_text("y = 2\nsteps  = 31\n")
    assert main(quoting(tmp_path, monkeypatch, "steps = 31", 2)) == 0
    assert capsys.readouterr().out == "1 quotation, 0 not checked, 0 wrong, 0 repos missing\n"
    for token, line, said in [("steps = 31", 1, "y = 2"), ("32", 2, "steps = 31"),
                              ("x", 9, "no line 9: the file has 2 lines")]:  # fmt: skip
        assert main(quoting(tmp_path, monkeypatch, token, line)) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"made, x: owner/name@0123456:code/a.py:{line}: ")
        assert said in error
    file.unlink()
    assert main(quoting(tmp_path, monkeypatch, "steps", 2)) == 1
    assert "the repository has no such file" in capsys.readouterr().err


def test_a_repository_without_a_checkout_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "name").mkdir()  # empty
    assert main(quoting(tmp_path, monkeypatch, "x", 1)) == 2
    said = capsys.readouterr()
    assert "no checkout of owner/name in" in said.out
    assert "1 quotation, 1 not checked, 0 wrong, 1 repo missing" in said.out
    assert "has no checkout of any quoted repository" in said.err
    assert main(["--sources", str(tmp_path / "nowhere")]) != 0


def git(place: Path, *words: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    done = subprocess.run(
        ["git", *who, *words], cwd=place, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def committed(place: Path) -> str:
    """Makes a repository with the file a.py, and returns its only commit."""
    place.mkdir(parents=True)
    git(place, "init", "-q")
    (place / "a.py").write_text("steps = 31\n")
    git(place, "add", "a.py")
    git(place, "commit", "-q", "-m", "first")
    return git(place, "rev-parse", "HEAD")


@pytest.mark.parametrize("name", ["name", "owner+name/work"])
def test_the_quoted_commit_is_read_rather_than_the_work_tree(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = committed(tmp_path / name)
    (tmp_path / name / "a.py").write_text("steps = 99\n")
    source = Source("owner/name", commit, "a.py", 1, "steps = 31")
    found = {"made": method(source)}
    monkeypatch.setattr("backdoor_lab.fidelity.__main__.methods", lambda: found)
    assert main(["--sources", str(tmp_path)]) == 0


@pytest.mark.parametrize("name", ["owner+name", "name.git", "owner+name.git", "owner+name/repo"])
def test_bare_repositories_are_read_at_the_quoted_commit_or_at_head(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = committed(tmp_path / "original")
    git(tmp_path, "clone", "-q", "--bare", "original", name)
    found = {}
    monkeypatch.setattr("backdoor_lab.fidelity.__main__.methods", lambda: found)
    for at, file, code in ((commit, "a.py", 0), ("0123456", "a.py", 0), (commit, "b.py", 1)):
        found["made"] = method(Source("owner/name", at, file, 1, "steps = 31"))
        assert main(["--sources", str(tmp_path)]) == code
