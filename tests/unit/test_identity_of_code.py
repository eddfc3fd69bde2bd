"""Edited code is another cell; a folder's record is believed for its own cell alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cells import cell_of, run_here

from backdoor_lab import build as build_module
from backdoor_lab.attacks.pattern import Pattern
from backdoor_lab.attacks.pixel import Pixel
from backdoor_lab.build import source_digest
from backdoor_lab.defenses.random import Random
from backdoor_lab.defenses.spectral import Spectral
from backdoor_lab.errors import ConfigError
from backdoor_lab.sweep.listing import finished


def edited(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    """From now on a module's source reads as if a line had been added to it."""
    usual = build_module.inspect.getsource

    def getsource(found: Any) -> str:
        return usual(found) + ("# edited\n" if found.__name__ == module else "")

    monkeypatch.setattr(build_module.inspect, "getsource", getsource)
    build_module._sources.cache_clear()


@pytest.fixture(autouse=True)
def _fresh() -> Any:
    yield
    build_module._sources.cache_clear()


def test_a_trigger_is_known_by_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own module counts, and the base that it builds on; another trigger's does not."""
    before = source_digest(Pixel()), source_digest(Pattern())
    assert before[0] != before[1]
    edited(monkeypatch, "backdoor_lab.attacks.pixel")
    assert source_digest(Pixel()) != before[0]
    assert source_digest(Pattern()) == before[1]
    edited(monkeypatch, "backdoor_lab.attacks.base")
    assert source_digest(Pattern()) != before[1]


def test_a_defense_is_known_by_what_it_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions that are neither its own nor its base's, and what those call in turn."""
    before = source_digest(Spectral())
    for module in ("gram", "principal", "budget"):
        with monkeypatch.context() as patch:
            edited(patch, f"backdoor_lab.defenses.{module}")
            assert source_digest(Spectral()) != before
        build_module._sources.cache_clear()
    edited(monkeypatch, "backdoor_lab.defenses.strip")
    assert source_digest(Spectral()) == before


def test_a_control_is_known_by_the_filter_it_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """`random` removes as many as another filter: that filter's code counts too."""
    before = source_digest(Random(like=Spectral()))
    edited(monkeypatch, "backdoor_lab.defenses.spectral")
    assert source_digest(Random(like=Spectral())) != before


def test_an_edited_trigger_is_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the cell nor its poison, networks and measurements are taken for the new code's."""
    first = run_here(tmp_path / "store", tmp_path / "a")
    edited(monkeypatch, "backdoor_lab.attacks.pixel")
    second = run_here(tmp_path / "store", tmp_path / "b")
    assert second["id"] != first["id"]
    made = {name: stage["made"] for name, stage in second["run"]["stages"].items()}
    assert made["poison"]
    assert made["measure1"]


def test_options_that_a_control_does_not_use_are_not_its_identity(tmp_path: Path) -> None:
    """A sweep over budgets has one `none` and one `oracle`, not one for each."""
    for defense in ("none", "oracle"):
        cells = [cell_of(tmp_path, f"defense={defense}", f"defense.budget={b}") for b in (1, 2)]
        assert cells[0].id == cells[1].id
    spectral = {cell_of(tmp_path, f"defense.budget={b}").id for b in (1, 2)}
    assert len(spectral) == 2
    assert cell_of(tmp_path, "protocol.budget=7").id == cell_of(tmp_path, "defense.budget=7").id


def test_precision_is_part_of_the_question_when_asked_for(tmp_path: Path) -> None:
    """Other digits, other weights: asked for by name, they are other cells."""
    ids = {cell_of(tmp_path, f"trainer.precision={p}").id for p in ("auto", "32", "bf16")}
    assert len(ids) == 3


def test_another_cells_record_is_not_taken_for_this_one(tmp_path: Path) -> None:
    """A folder given by hand that holds another cell's record is refused."""
    (tmp_path / "record.json").write_text(json.dumps({"id": "other", "status": "done"}))
    with pytest.raises(ConfigError, match=r"holds the record of other"):
        finished(tmp_path, "mine")
    # Its own, without a figure, is nothing that is done.
    assert not finished(tmp_path, "other")


def test_poison_made_with_a_network_is_of_that_networks_number_format(tmp_path: Path) -> None:
    """The attacker's network sees other numbers in bfloat16: its poison is made anew."""
    asked = ("trigger=label_consistent", "trigger.steps=2", "retrain=false")
    alone = run_here(tmp_path / "fresh", tmp_path / "a", *asked, "trainer.precision=bf16")
    run_here(tmp_path / "store", tmp_path / "b", *asked, "trainer.precision=32")
    after = run_here(tmp_path / "store", tmp_path / "c", *asked, "trainer.precision=bf16")
    assert after["run"]["stages"]["poison"]["made"]
    assert after["hashes"] == alone["hashes"]
