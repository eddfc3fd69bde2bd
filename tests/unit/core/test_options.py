"""Empty path arguments, which a shell makes from unset variables, are refused."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import pytest

from backdoor_lab import (
    distortion,
    export,
    export_weights,
    preview,
    separation,
    status,
    visibility,
)
from backdoor_lab.compare import __main__ as compare
from backdoor_lab.core.options import path_of
from backdoor_lab.figures import __main__ as figures
from backdoor_lab.reports import __main__ as reports
from tests.helpers.records import record, write_sweep

PARSED: dict[str, tuple[Callable[[list[str]], int], list[str]]] = {
    "compare": (compare.main, ["A", "reference", "--out", ""]),
    "distortion": (distortion.main, ["A", "--out", ""]),
    "export": (export.main, [""]),
    "export to": (export.main, ["--out", ""]),
    "export_weights": (export_weights.main, ["", "--out", "w.safetensors"]),
    "export_weights of": (export_weights.main, ["A", "--out", "w.safetensors", "--store", ""]),
    "figures": (figures.main, ["A", "--store", ""]),
    "preview": (preview.main, ["--out", ""]),
    "separation": (separation.main, ["A", "--store", ""]),
    "status": (status.main, [""]),
    "visibility": (visibility.main, ["A", "--out", ""]),
}


def test_a_path_argument_becomes_a_path_and_an_empty_one_is_refused() -> None:
    assert path_of("a/b c") == Path("a/b c")
    with pytest.raises(argparse.ArgumentTypeError, match="the current folder is `.`"):
        path_of("")


@pytest.mark.parametrize("name", list(PARSED))
def test_every_command_refuses_an_empty_path(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_sweep(tmp_path / "A", [record()])
    before = sorted(tmp_path.rglob("*"))
    main, words = PARSED[name]
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert "it is empty; the current folder is `.`" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_folder_name_gives_a_one_line_error_and_no_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = write_sweep(tmp_path / "A", [record()])
    assert reports.main([""]) == 2
    assert capsys.readouterr().err == "error: no such folder: ''\n"
    assert not (folder / "tables").exists()
