"""The threat model of every attack: one line in the guide and in the help."""

from __future__ import annotations

from pathlib import Path

from backdoor_lab.attacks.threat_model import ThreatModel, of_every_trigger
from tests.helpers.cells import started
from tests.helpers.project import CONF


def test_a_threat_model_says_what_the_attacker_controls_and_knows() -> None:
    assert str(ThreatModel()) == "controls images and labels; knows nothing"
    clean = ThreatModel(("images",), ("data", "model"), "knows less")
    assert str(clean) == "controls images; knows data and model (paper: knows less)"


def test_every_trigger_of_the_configuration_has_a_threat_model() -> None:
    found = of_every_trigger(CONF)
    assert set(found) == {path.stem for path in (CONF / "trigger").glob("*.yaml")}
    assert found["sleeper_agent"].controls == ("images",)
    assert found["pixel"].knows == ()


def test_help_prints_the_threat_model_of_every_trigger(tmp_path: Path) -> None:
    lines = [" ".join(line.split()) for line in started(tmp_path, "--help").stdout.splitlines()]
    for name, threat in of_every_trigger(CONF).items():
        assert f"{name} {threat}" in lines
