"""The clean and the triggered test images on which a completed cell measured its networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from backdoor_lab import identity
from backdoor_lab.attacks.base import Trigger
from backdoor_lab.attacks.plan import PoisonSpec, asr_test_set, elsewhere_test_set
from backdoor_lab.core.errors import ConfigError, DataError
from backdoor_lab.core.instantiate import build
from backdoor_lab.core.types import ImportedAttack
from backdoor_lab.data.base import Split
from backdoor_lab.identity.plugin_code import plugin_of
from backdoor_lab.pipeline.cell import PLANNED
from backdoor_lab.pipeline.stages.holdout import held_out_rows
from backdoor_lab.plugins.trust import trusted
from backdoor_lab.training.evaluate import CHUNK


@dataclass(frozen=True)
class MeasuredOn:
    """`clean` are the test images that clean accuracy was measured on; `triggered` are those of the
    attack success rate, with the labels that the attacker wants. `rows`, int64 (k,), are the
    indices of the latter in `clean`, -1 if unknown.

    `elsewhere` are triggered images of classes that a source-specific attack does not attack, and
    `rows_elsewhere` are their indices in `clean`. `kept`, int64 (n,), are the indices of `clean` in
    all test images."""

    clean: Split
    triggered: Split
    rows: torch.Tensor
    elsewhere: Split
    rows_elsewhere: torch.Tensor
    kept: torch.Tensor


def trigger_of(record: dict[str, Any], prepared: dict[str, Any]) -> Trigger:
    """Returns the trigger of a cell's record; `prepared` are the arrays that it optimized or
    trained. Raises ConfigError if it cannot be built, or if it is that of a plug-in whose code has
    changed since."""
    _check_trust(record)
    trigger = build("trigger", record["config"]["trigger"], Trigger)
    plugin = plugin_of(trigger)
    if plugin is not None:
        then, now = record["config"]["code"]["triggers"].get(plugin), identity.plugin_mark(plugin)
        if then != now:
            raise ConfigError(
                f"the plug-in {plugin} is not the code that the cell ran with ({now}, not {then}),"
                " so its trigger may make other images: restore that code, or run the cell again"
            )
    if trigger.needs_preparing:
        trigger.state = {name: torch.from_numpy(np.array(v)) for name, v in prepared.items()}
    return trigger


def _check_trust(record: dict[str, Any]) -> None:
    """Raises ConfigError if the trigger is that of a plug-in which is not trusted here."""
    target = str(record["config"]["trigger"].get("_target_", ""))
    for each in record["run"].get("plugins", []):
        name = each["name"]
        if target.startswith(f"{name}.") and trusted().plugin_of(target) is None:
            package = each.get("distribution")
            said = f"the package {name} ({package} {each.get('version')})" if package else name
            add = f"allow_plugins=[{name}]" if package else f"plugins=[PATH/{name}.py]"
            raise ConfigError(
                f"the cell's trigger is in the plug-in {said}, which is not trusted here, so"
                f" nothing of it was imported: add {add}"
            )


def test_sets_of(
    record: dict[str, Any], test: Split, classes: Sequence[str], prepared: dict[str, Any],
    attack: ImportedAttack | None,
) -> MeasuredOn:  # fmt: skip
    """Returns the test sets of a cell's record. `test` has all test images of its data set, and
    `prepared` the arrays that its trigger optimized or trained. `attack` is that of a data set that
    was poisoned before it was read, None for other data sets.

    Raises ConfigError if the trigger of the configuration cannot be built, DataError if the data
    set has no triggered test images.
    """
    protocol, chosen = record["protocol"], record["choices"]
    images, labels = (torch.from_numpy(np.array(each)) for each in (test.images, test.labels))
    rest = torch.ones(len(labels), dtype=torch.bool)
    if n := protocol["clean_holdout"]:
        rest[held_out_rows(labels, len(classes), n, chosen["seed"])] = False
        images, labels = images[rest], labels[rest]
    clean, kept = Split(images.numpy(), labels.numpy()), rest.nonzero().flatten()
    if attack is not None:
        return _imported(clean, attack.without(rest.numpy()), kept)
    source = chosen.get("source")
    plan = PoisonSpec(
        classes.index(chosen["target"]), None if source is None else classes.index(source),
        chosen["ratio"], **{key: protocol[key] for key in PLANNED},
    )  # fmt: skip
    trigger = trigger_of(record, prepared)
    rows, others = asr_test_set(labels, plan), elsewhere_test_set(labels, plan)
    others = others[~torch.isin(others, rows)]
    wanted = plan.wanted(labels, len(classes))

    def shown(where: torch.Tensor) -> Split:
        made = [trigger(images[part]) for part in where.split(CHUNK)]
        return Split(torch.cat([images[:0], *made]).numpy(), wanted[where].numpy())

    return MeasuredOn(clean, shown(rows), rows, shown(others), others, kept)


def _imported(clean: Split, attack: ImportedAttack, kept: torch.Tensor) -> MeasuredOn:
    if attack.triggered is None or attack.elsewhere is None:
        raise DataError("the data set has no triggered test images")

    def part(chosen: NDArray[np.bool_]) -> tuple[Split, torch.Tensor]:
        images, wanted, rows = (
            attack.arrays[name][chosen] for name in ("triggered", "wanted", "test_index")
        )
        return Split(images, wanted), torch.from_numpy(rows)

    elsewhere = attack.elsewhere
    return MeasuredOn(clean, *part(~elsewhere), *part(elsewhere), kept)
