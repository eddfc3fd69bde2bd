"""Defense after training: the report's Algorithm 1, as a Lightning callback."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

import pytorch_lightning as pl

from backdoor_lab.training.classifier import Classifier
from backdoor_lab.training.device import ComputeDevice

Evidence = TypeVar("Evidence")
Result = TypeVar("Result")
Network_co = TypeVar("Network_co", covariant=True)


class AfterTraining(Protocol[Evidence, Result, Network_co]):
    """The three steps after a training. They handle stores and configurations, so the callback does
    not have to."""

    def extract(self, model: Classifier) -> Evidence:
        """Features of the training set, and the other inputs of the defense."""

    def defend(self, evidence: Evidence) -> Result:
        """The result of the defense: which examples it keeps."""

    def retrain(self, result: Result) -> Network_co | None:
        """A network trained from scratch on the kept examples; None if retraining is off."""


class DefendAndRetrain(pl.Callback, Generic[Evidence, Result, Network_co]):
    """At the end of a fit, extracts features, filters the training set and retrains.

    Afterwards, `result` and `retrained` hold the results of the steps.
    """

    result: Result
    retrained: Network_co | None = None

    def __init__(self, steps: AfterTraining[Evidence, Result, Network_co]) -> None:
        self.steps = steps

    def on_fit_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, Classifier)
        self.result = self.steps.defend(self.steps.extract(module.eval()))
        self.retrained = self.steps.retrain(self.result)


def after_training(
    module: Classifier,
    callback: DefendAndRetrain[Evidence, Result, Network_co],
    machine: ComputeDevice,
) -> None:
    """Run the callback on a trained network whose weights are published.

    Runs a fit without further epochs, so that new weights, those of another cell and those of a
    killed run take the same path. The weights are published before, so that a kill during the
    defense does not lose the attacked network.
    """
    from backdoor_lab.training.train import trainer_for

    trainer = trainer_for(machine, epochs=0, callbacks=[callback])
    trainer.fit(module, _NoBatches())


class _NoBatches:
    # Lightning inspects the loader before it finds that no epochs are left.
    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[None]:
        return iter(())
