"""What the attacker behind a canary may use: a surrogate, trained like a network of the scan."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from torch import nn

from backdoor_lab.attacks.base import AttackContext
from backdoor_lab.attacks.plan import PoisonSpec
from backdoor_lab.attacks.poison import clean
from backdoor_lab.core import streams
from backdoor_lab.core.rng import derive
from backdoor_lab.core.types import LabeledImages
from backdoor_lab.scan.options import ScanOptions
from backdoor_lab.training.device import ComputeDevice
from backdoor_lab.training.evaluate import channel_stats
from backdoor_lab.training.train import TrainingJob, fit


def context_of(
    base: LabeledImages, plan: PoisonSpec, seed: int, options: ScanOptions, machine: ComputeDevice
) -> AttackContext:
    """Returns the context of an attack on `base`. The surrogate is trained on `base` when the
    attack asks for it."""

    @cache
    def surrogate() -> nn.Module:
        own, stats = derive(seed, streams.SURROGATE), channel_stats(base.images)
        job = TrainingJob(options.model, options.recipe, clean(base), own, *stats)
        return fit(job, replace(machine, bf16=False)).to(machine.device)

    return AttackContext(base, plan.target, plan.source, seed, surrogate, machine.device)
