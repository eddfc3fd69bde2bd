"""A Lightning callback that runs a defense after training: Algorithm 1 of the published report."""

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
    """The three steps that `DefendAndRetrain` calls. An implementation takes care of configuration
    and storage, so that the callback needs neither."""

    def extract(self, model: Classifier) -> Evidence:
        """Compute the inputs of the defense: the features of the training set, and any others."""

    def defend(self, evidence: Evidence) -> Result:
        """Run the defense. The result states which examples the defense keeps."""

    def retrain(self, result: Result) -> Network_co | None:
        """Train a network from scratch on the kept examples, or repair the trained one. Returns
        None if retraining is off."""


class DefendAndRetrain(pl.Callback, Generic[Evidence, Result, Network_co]):
    """At the end of a fit, extracts features, filters the training set and retrains.

    After the fit, `result` is what the step `defend` returned, and `retrained` what `retrain`
    returned.
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
    """Runs the callback on a trained network whose weights are in the store.

    The callback always runs in a separate fit with zero epochs, both for newly trained weights and
    for weights read from the store. Storing the weights first means that a process killed during
    the defense does not lose them.
    """
    from backdoor_lab.training.train import trainer_for

    trainer = trainer_for(machine, epochs=0, callbacks=[callback])
    trainer.fit(module, _NoBatches())


class _NoBatches:
    # Lightning asks for the length before it notices that there is no epoch to run.
    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[None]:
        return iter(())
