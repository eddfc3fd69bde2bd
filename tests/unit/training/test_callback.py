"""The callback that runs a defense after training: extract, defend, retrain, once and in order."""

from __future__ import annotations

from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from backdoor_lab.core.errors import DivergedError
from backdoor_lab.training.callback import DefendAndRetrain, after_training
from backdoor_lab.training.classifier import Classifier
from backdoor_lab.training.train import fit, new_classifier
from tests.helpers.cells import CPU, job


class Steps:
    """Three steps that record their calls and arguments."""

    def __init__(self, retrains: bool = True) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.retrained = new_classifier(job(seed=9), CPU) if retrains else None
        self.callback = DefendAndRetrain(self)

    def extract(self, module: Classifier) -> str:
        # The weights at this moment, and the network's mode.
        bias = module.get_parameter("net.fc.bias").detach().clone()
        self.calls.append(("extract", (bias, module.training)))
        return "features"

    def defend(self, evidence: str) -> str:
        self.calls.append(("defend", evidence))
        return "verdict"

    def retrain(self, result: str) -> Classifier | None:
        self.calls.append(("retrain", result))
        return self.retrained

    def check(self, module: Classifier) -> None:
        assert [name for name, _ in self.calls] == ["extract", "defend", "retrain"]
        (bias, training), features, verdict = (what for _, what in self.calls)
        assert (features, verdict, training) == ("features", "verdict", False)
        assert torch.equal(bias, module.get_parameter("net.fc.bias"))
        assert self.callback.result == "verdict"
        assert self.callback.retrained is self.retrained


def test_the_callback_of_a_defense_runs_at_the_end_of_training() -> None:
    steps = Steps()
    module = fit(job(), CPU, callbacks=[steps.callback])
    steps.check(module)
    untrained = new_classifier(job(), CPU).get_parameter("net.fc.bias")
    assert not torch.equal(steps.calls[0][1][0], untrained)


def test_without_retraining_the_callback_has_a_result_but_no_retrained_network() -> None:
    steps = Steps(retrains=False)
    fit(job(), CPU, callbacks=[steps.callback])
    assert [name for name, _ in steps.calls] == ["extract", "defend", "retrain"]
    assert steps.callback.result == "verdict"
    assert steps.callback.retrained is None


def test_the_callback_of_a_defense_runs_even_if_the_weights_are_loaded() -> None:
    steps = Steps()
    trained = fit(job(), CPU)
    published = new_classifier(job(), CPU)
    published.net.load_state_dict(trained.net.state_dict())
    before = {name: value.clone() for name, value in published.state_dict().items()}
    after_training(published, steps.callback, CPU)
    steps.check(published)
    assert all(torch.equal(value, before[n]) for n, value in published.state_dict().items())


def test_lightning_calls_the_callback_even_without_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []
    whole = pl.Trainer.fit

    def noted(self: pl.Trainer, *arguments: Any, **said: Any) -> None:
        asked.append(self.max_epochs or 0)
        whole(self, *arguments, **said)

    monkeypatch.setattr(pl.Trainer, "fit", noted)
    fit(job(), CPU, callbacks=[Steps().callback])
    after_training(new_classifier(job(), CPU), Steps().callback, CPU)
    assert asked == [2, 0]


def test_an_error_in_the_callback_of_a_defense_is_raised() -> None:
    class Failing(Steps):
        def defend(self, evidence: str) -> str:
            raise DivergedError("scores")

    steps = Failing()
    callback = steps.callback
    with pytest.raises(DivergedError, match="scores"):
        after_training(new_classifier(job(), CPU), callback, CPU)
    assert callback.retrained is None
    assert [name for name, _ in steps.calls] == ["extract"]
