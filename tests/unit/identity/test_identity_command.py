"""`python -m backdoor_lab.identity` lists modified components and records them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from backdoor_lab import identity
from backdoor_lab.identity import sources
from backdoor_lab.identity import table as identity_table
from backdoor_lab.identity.__main__ import main
from backdoor_lab.identity.sources import ROOT


@pytest.fixture(autouse=True)
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of identity.json, while `blended.py` appears to be edited."""
    path, usual = tmp_path / "identity.json", sources._text
    path.write_bytes(identity.TABLE.read_bytes())
    for module in (identity, identity_table):
        monkeypatch.setattr(module, "TABLE", path)
    edited = ROOT / "attacks/blended.py"
    monkeypatch.setattr(
        sources, "_text", lambda asked: usual(asked) + b"X = 1\n" * (asked == edited)
    )
    identity.forget()
    yield path
    monkeypatch.undo()
    identity.forget()


def entry(path: Path, name: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(path.read_bytes())["triggers"][name]
    return found


def test_modified_components_are_listed_with_exit_code_1(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([]) == 1
    said = capsys.readouterr().out
    assert re.fullmatch(
        r"blended \(triggers\) was modified since version 1 \(1\+[0-9a-f]{8} in tables\)\n", said
    )


@pytest.mark.parametrize(("option", "version"), [("--accept", 1), ("--raise", 2)])
@pytest.mark.parametrize("name", ["blended", "all"])
def test_the_accept_option_keeps_the_version_and_the_raise_option_increments_it(
    option: str, version: int, name: str, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other components keep their versions."""
    before = json.loads(table.read_bytes())
    assert main([option, name]) == 0
    assert capsys.readouterr().out == f"blended (triggers): version {version}\n"
    after = json.loads(table.read_bytes())
    assert after["triggers"].pop("blended")["version"] == version
    before["triggers"].pop("blended")
    assert after == before
    assert main([]) == 0
    assert capsys.readouterr().out == "the code matches identity.json\n"
    assert identity.stage("train") == 3


def test_new_and_removed_components_are_recorded(
    table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A new component gets version 1."""
    content = json.loads(table.read_bytes())
    content["defenses"]["gone"] = content["defenses"].pop("spectral")
    table.write_text(json.dumps(content))
    identity.forget()
    assert main([]) == 1
    said = capsys.readouterr().out.splitlines()
    assert "gone (defenses) was removed" in said
    [new] = [line for line in said if line.startswith("spectral")]
    assert re.fullmatch(r"spectral \(defenses\) is new \(0\+[0-9a-f]{8} in tables\)", new)
    assert main(["--accept", "spectral", "gone"]) == 0
    found = json.loads(table.read_bytes())["defenses"]
    assert "gone" not in found
    assert found["spectral"]["version"] == 1


def test_identity_json_has_one_component_per_line(table: Path) -> None:
    """One line per component keeps conflicts between branches rare."""
    before = table.read_text()
    main(["--accept", "pixel"])
    assert table.read_text() == before
    assert all(line.count('"version"') <= 1 for line in before.splitlines())


def test_the_files_option_lists_the_files_of_a_component(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--files", "pixel"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("pixel (triggers): ")
    assert {"attacks/base.py", "attacks/pixel.py"} <= set(said.split(": ")[1].split(", "))


def test_an_unknown_component_is_refused_and_the_nearest_name_is_suggested(
    table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = table.read_bytes()
    for option in ("--accept", "--raise", "--files"):
        assert main([option, "blendet"]) == 2
        assert "Did you mean 'blended'?" in capsys.readouterr().err
    assert table.read_bytes() == before
