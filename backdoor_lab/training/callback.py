"""What happens after training: the report's Algorithm 1, as a Lightning callback."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytorch_lightning as pl

from backdoor_lab.training.machine import Machine
from backdoor_lab.training.module import Classifier


class DefendAndRetrain(pl.Callback):
    """Extracts features, filters the training set and launches the retrain job.

    Runs when a fit ends. The three steps are handed in as functions, so that the callback knows
    nothing of stores and configurations: `extract(module)` gives features, `judge(features)` a
    verdict, `retrain(verdict)` a network trained from scratch on what the verdict keeps; None
    where only the verdict is wanted.
    """

    def __init__(
        self,
        extract: Callable[[Classifier], Any],
        judge: Callable[[Any], Any],
        retrain: Callable[[Any], Classifier] | None,
    ) -> None:
        self.extract, self.judge, self.retrain = extract, judge, retrain
        self.verdict: Any = None
        self.retrained: Classifier | None = None

    def on_fit_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, Classifier)
        self.verdict = self.judge(self.extract(module.eval()))
        if self.retrain is not None:
            self.retrained = self.retrain(self.verdict)


def after_training(module: Classifier, callback: DefendAndRetrain, machine: Machine) -> None:
    """Runs the callback on a trained network whose weights are published.

    A fit of no further epochs: whether the weights were made just now, by another cell or by a
    run that was killed, they go through this one path. The weights are published before, so
    that a kill during the defense never costs the attacked network.
    """
    from backdoor_lab.training.fit import trainer_for

    trainer = trainer_for(machine, epochs=0, callbacks=[callback])
    trainer.fit(module, _NoBatches())


class _NoBatches:
    # Lightning looks at the loader before it finds that no epochs are left.
    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[None]:
        return iter(())
