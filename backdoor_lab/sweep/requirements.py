"""Checks that the parts of a cell fit each other and its data set."""

from __future__ import annotations

from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.store import Store
from backdoor_lab.core.types import Dataset, ImportedAttack
from backdoor_lab.data.cache import open_dataset
from backdoor_lab.defenses.base import Defense, OracleControl
from backdoor_lab.defenses.networks import ModelRepair
from backdoor_lab.pipeline.cell import Cell
from backdoor_lab.pipeline.stages.holdout import class_sizes, held_out


def check_emptied(cell: Cell, before: list[int], after: list[int]) -> None:
    """Raises ConfigError if the attack relabels every image of a class. `before` and `after` are
    the numbers of training images of each class before and after the attack."""
    gone = [cell.classes[y] for y, n in enumerate(after) if before[y] and not n]
    if gone:
        raise ConfigError(
            f"`ratio`={cell.ratio:g} relabels every training image of class {gone[0]}: none"
            " would be left. Use a smaller ratio, or protocol.placement=append"
        )


def check_control(cell: Cell, attack: ImportedAttack) -> None:
    """Raises ConfigError if a control lacks what it needs: the ground truth, or the images before
    the attack."""
    defense, named = cell.defense, f"`defense={cell.choices['defense']}`"
    if not isinstance(defense, OracleControl):
        return
    if attack.is_poison is None:
        raise ConfigError(
            f"{named} needs the ground truth, but `dataset.root` does not mark the poisoned images"
        )
    if defense.restores:
        raise ConfigError(
            f"{named} retrains on the images before the attack, which `dataset.root` does not"
            " contain: use defense=oracle, which removes the poisoned images"
        )


def check_scope(cell: Cell, defense: Defense) -> None:
    """Raises ConfigError if the defense filters one class, but the attack targets every class."""
    if cell.plan.label_mode == "all_to_all" and "target" in defense.requires():
        raise ConfigError(
            "`label_mode=all_to_all` attacks every class, but this defense filters only one class:"
            " set protocol.filter_scope=all or protocol.filter_scope=suspicious"
        )


def check_labels(cell: Cell) -> None:
    """Raises ConfigError if the trigger attacks one class but the label mode every class."""
    if cell.trigger.source_specific and cell.protocol["label_mode"] == "all_to_all":
        raise ConfigError(
            f"`trigger={cell.choices['trigger']}` attacks one source class, but"
            " `label_mode=all_to_all` attacks every class: remove one of the two"
        )


def check_repair(cell: Cell) -> None:
    """Raises ConfigError if the defense is a repair, but the cell has no second network, or a
    recipe that the repair cannot follow."""
    if not isinstance(cell.defense, ModelRepair):
        return
    cell.defense.check_optimizer(cell.recipe.optimizer)
    if not cell.retrain:
        raise ConfigError(
            f"`defense={cell.choices['defense']}` cannot be used with `retrain=false`:"
            " its only result is the network after the defense"
        )


def check_clean_source(cell: Cell, data: Dataset) -> None:
    """Raises ConfigError unless the defense's own clean images fit the data set."""
    source = cell.parts.clean_source
    if source is None:
        return
    if source.imported() is not None:
        raise ConfigError("`defense.data` must be a clean data set, but this one is poisoned")
    found = open_dataset(source, Store(cell.store_root, read_only=True))
    if found.train.shape != data.train.shape:
        shapes = ("x".join(map(str, each.shape)) for each in (found.train, data.train))
        raise ConfigError(
            "`defense.data` has images of {}, but the network takes images of {}: choose a data set"
            " with the same size (defense.data.size) and number of channels".format(*shapes)
        )
    if sorted(found.classes) != sorted(cell.classes):
        raise ConfigError(
            f"`defense.data` has the classes {_named(found.classes)}, but the network knows"
            f" {_named(cell.classes)}: both must have the same names, in any order. With"
            " other classes the network needs a new last layer, and then neither Nat2 nor ASR2 is"
            " defined, because they count answers in the old classes"
        )


def _named(classes: tuple[str, ...]) -> str:
    more = f" and {len(classes) - 4} more" if len(classes) > 4 else ""
    return ", ".join(classes[:4]) + more


def check_held_out(cell: Cell, data: Dataset) -> None:
    """Raises ConfigError if too many test images are held out, or too few for the defense."""
    wanted, there = cell.protocol["clean_holdout"], len(data.test)
    if 2 * wanted > there:
        raise ConfigError(
            f"`protocol.clean_holdout`={wanted} would leave less than half of the"
            f" {there} test images for evaluation: use at most {there // 2}"
        )
    sizes = class_sizes(data.test.labels, len(data.classes))
    taken = class_sizes(data.test.labels[held_out(cell, data.test)], len(data.classes))
    for name, size, lost in zip(data.classes, sizes, taken, strict=True):
        if size and size - lost < max(1, size // 2):
            raise ConfigError(
                f"`protocol.clean_holdout`={wanted} would leave {size - lost} of"
                f" the {size} test images of class {name} for evaluation: use a smaller value"
            )
    needs = {"clean", "clean images"} & set(cell.requires) and cell.parts.clean_source is None
    if needs and min(taken) < 2:
        few = min(range(len(taken)), key=lambda label: taken[label])
        raise ConfigError(
            f"`defense={cell.choices['defense']}` needs a few clean images of every class,"
            f" but protocol.clean_holdout={wanted} holds out only {taken[few]} of class"
            f" {data.classes[few]}: set protocol.clean_holdout to {2 * len(data.classes)} or more"
            " (held-out images are not used for evaluation)"
        )
