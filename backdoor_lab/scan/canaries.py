"""Canaries: backdoors planted into copies of a scanned set, to measure what its scan can find.

One canary of a kind and rate is planted per copy, into a class drawn among those without alarm. The
copy is scanned like the set, relative to the same calibration, and a canary counts as found if its
class is named. Canaries are planted before images are resized.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from backdoor_lab import identity
from backdoor_lab.attacks.base import AttackContext, Trigger
from backdoor_lab.attacks.plan import PoisonSpec
from backdoor_lab.attacks.poison import no_change, poison
from backdoor_lab.config_loader import conf_dir
from backdoor_lab.core import streams
from backdoor_lab.core.errors import ConfigError, unknown
from backdoor_lab.core.instantiate import build
from backdoor_lab.core.lazy import Tensor, torch
from backdoor_lab.core.rng import derive, numpy_generator
from backdoor_lab.core.types import LabeledImages
from backdoor_lab.data.arrays import resized
from backdoor_lab.scan.images import ScanImages, changed, judged

KINDS = ("pattern", "blended", "sinusoid")
"""The triggers of ``scan.canaries=default``. All triggers that statistics were chosen on are
allowed, and any other that needs no training."""
RATES = (0.02, 0.05, 0.1)
"""Shares of the class in which canaries are planted."""
MOST_COPIES = 1000
PROBES = 200
"""The most triggered images on which a canary's attack success rate is measured."""
Attacker = Callable[[LabeledImages, PoisonSpec, int], AttackContext]
"""Returns what an attack may use, given the images, the specification and the seed."""


@dataclass(frozen=True)
class Canary:
    """A canary: number `copy`, trigger `kind` in `images` images, which are `rate` of the class
    `label`."""

    copy: int
    kind: str
    rate: float
    label: int
    images: int


@dataclass(frozen=True)
class Planted:
    """A copy with a canary. `probes` are triggered images, uint8 (m, C, H, W), that a network takes
    for the class of the canary if it has learned the trigger; they are not part of the copy."""

    found: ScanImages
    probes: Tensor


def as_text(value: object) -> str:
    """Returns `scan.canaries` as text: a list of triggers is joined by commas. Raises ConfigError
    for a value of another type."""
    if value is None or value in ([], ()):
        return "none"
    if isinstance(value, (list, tuple)) and all(isinstance(each, str) for each in value):
        return ",".join(value)
    if not isinstance(value, str):
        raise ConfigError(
            "`scan.canaries` must be default, none or a list of triggers such as"
            f" [pattern,blended], got {value!r}"
        )
    return value


def kinds_of(text: str) -> tuple[str, ...]:
    """Returns the kinds of `scan.canaries`: ``default``, ``none`` or triggers separated by commas.
    Raises ConfigError for a trigger that is unknown, must be trained, or is listed twice."""
    if text in ("none", "default"):
        return KINDS if text == "default" else ()
    kinds = tuple(text.split(","))
    for each in kinds:
        trigger = trigger_of(each)
        if trigger.needs_preparing or trigger.uses_surrogate:
            raise ConfigError(f"`scan.canaries`: the trigger {each} must be trained; choose others")
    if len(set(kinds)) < len(kinds):
        raise ConfigError(f"`scan.canaries` lists a trigger twice: {text}")
    return kinds


def trigger_of(
    kind: object, option: str = "scan.canaries", others: Sequence[str] = ("default", "none")
) -> Trigger:
    """Returns the trigger `kind` with its default options. Raises ConfigError if there is none;
    `others` are the other values of the option."""
    known = sorted(path.stem for path in Path(conf_dir(), "trigger").glob("*.yaml"))
    if kind not in known:
        raise unknown(f"`{option}`: trigger", str(kind), [*others, *known])
    config = OmegaConf.to_container(OmegaConf.load(Path(conf_dir(), "trigger", f"{kind}.yaml")))
    assert isinstance(config, dict)
    return build("trigger", {str(key): value for key, value in config.items()}, Trigger)


def schedule(
    found: ScanImages, kinds: Sequence[str], quiet: Sequence[int], copies: int, seed: int
) -> list[Canary]:
    """Returns the canaries of `copies` copies: each kind and rate in turn, in a class drawn from
    `quiet`. The numbers drawn depend only on `seed`."""
    cells = [(kind, rate) for rate in RATES for kind in kinds]
    planned = []
    for copy in range(copies if quiet and cells else 0):
        kind, rate = cells[copy % len(cells)]
        label = int(numpy_generator(seed, streams.SCAN_CANARY, copy).choice(quiet))
        planned.append(Canary(copy, kind, rate, label, max(1, round(rate * found.sizes[label]))))
    return planned


def plant(
    found: ScanImages, canary: Canary, usable: Tensor, seed: int, attacker: Attacker | None = None
) -> Planted:
    """Returns a copy of `found` with a canary. Images to poison are drawn from those that are
    `usable`, bool (n,). With clean labels, they are changed in place; otherwise, triggered copies
    are appended. Only triggers that must be trained need `attacker`. Raises ConfigError if the
    trigger does not fit the images."""
    trigger = trigger_of(canary.kind)
    where = usable.nonzero().flatten()
    originals = found.labeled.images if found.originals is None else found.originals
    labels = found.labeled.labels[where]
    base = LabeledImages(originals[where], labels, found.classes)
    trigger.check_image_size(*base.shape)
    own = derive(seed, streams.SCAN_CANARY, canary.copy)
    plan = _plan(trigger, canary, found, own)
    context = None if attacker is None else attacker(base, plan, own)
    if trigger.needs_preparing and context is not None:
        trigger.state = trigger.prepare(context)
    made = poison(base, trigger, plan, seed=own, context=context)
    laid_over = made.training.index >= len(base)
    rows = made.training.rows[made.training.index[laid_over] - len(base)]
    if torch.equal(rows, base.images[torch.cat([made.source_index, made.cover_index])]):
        raise no_change(canary.kind)
    size = found.labeled.images.shape[-1]
    small = torch.from_numpy(resized(rows.numpy(), size))
    given = made.training.labels[laid_over]
    if plan.placement == "append":
        images = torch.cat([found.labeled.images, small])
        all_labels = torch.cat([found.labeled.labels, given])
    else:
        images, all_labels = found.labeled.images.clone(), found.labeled.labels
        images[where[laid_over[: len(base)].nonzero().flatten()]] = small
    probes = _probes(base, trigger, plan, made.source_index, own)
    return Planted(
        changed(found, images, all_labels), torch.from_numpy(resized(probes.numpy(), size))
    )


def _plan(trigger: Trigger, canary: Canary, found: ScanImages, seed: int) -> PoisonSpec:
    """Returns the specification of a canary. An attack on one source class attacks one that is
    drawn."""
    clean = trigger.label_mode == "clean"
    source = None
    if trigger.source_specific:
        others = [label for label in judged(found) if label != canary.label]
        source = int(numpy_generator(seed, streams.SCAN_CANARY).choice(others))
    drawn_from = "target" if clean else "not_target" if source is None else "source"
    covered = trigger.cover_from(canary.label, source, len(found.classes))
    return PoisonSpec(
        canary.label, source, canary.images, ratio_of="count",
        placement="replace" if clean else "append", poison_from=drawn_from,
        asr_on="not_target" if source is None else "source", label_mode=trigger.label_mode,
        cover_rate=trigger.cover_rate, cover_from=covered,
    )  # fmt: skip


def _probes(
    base: LabeledImages, trigger: Trigger, plan: PoisonSpec, poisoned: Tensor, seed: int
) -> Tensor:
    """Returns triggered images of classes that the attack is to move to the target."""
    allowed = base.labels != plan.target
    if plan.source is not None:
        allowed = base.labels == plan.source
    allowed[poisoned] = False
    among = allowed.nonzero().flatten().numpy()
    drawn = numpy_generator(seed, streams.SCAN_CANARY, 1).permutation(among)[:PROBES]
    return trigger(base.images[torch.from_numpy(np.sort(drawn))])


def described(canary: Canary) -> dict[str, Any]:
    """Returns a canary and the versions of its trigger, as inputs of a stage."""
    trigger = trigger_of(canary.kind)
    return asdict(canary) | {"versions": identity.of("triggers", trigger)}


def copies_for(minutes: float, seconds: float) -> int:
    """Returns how many copies can be scanned in `minutes`, if one takes `seconds`; at most
    `MOST_COPIES`.

    >>> copies_for(10, 90.0)
    6
    """
    return int(min(60 * minutes // max(seconds, 1e-3), MOST_COPIES))
