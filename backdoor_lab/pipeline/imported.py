"""Completes the configuration of a cell whose data set is already poisoned: the attack is that of
the set, so its facts are not options."""

from __future__ import annotations

from typing import Any

from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.types import ImportedFacts
from backdoor_lab.pipeline.classes import class_number

TRIGGER = "backdoor_lab.attacks.imported.ImportedTrigger"
GIVEN = ("target", "source", "ratio", "label_mode", "cover_rate")
"""The options that describe an attack. For a poisoned set, they are null or equal to its facts."""
CHOICES = ("ratio_of", "placement", "poison_from", "asr_on")
"""The keys of a protocol that describe an attack, and that a set's card states."""


def with_attack(config: dict[str, Any], facts: ImportedFacts | None) -> dict[str, Any]:
    """Returns `config` with the trigger, the classes, the ratio and the protocol's choices of the
    attack on its data set; `config` itself if the data set is not poisoned (`facts` is None).

    The ratio of a set whose ground truth is unknown is the user's assumption. Raises ConfigError if
    an option contradicts the set, or if a value is needed that the set does not state.
    """
    chosen = _part(config, "trigger")
    imported = chosen.get("_target_") == TRIGGER
    if facts is None:
        if imported:
            raise ConfigError("`trigger=imported` is the trigger of `dataset=poisoned` only")
        return config
    # The options of another trigger are merged into those of the imported one.
    if not imported or chosen.keys() - {"_target_", "name", "options"}:
        raise ConfigError(
            f"`dataset={_part(config, 'dataset').get('name') or 'poisoned'}` is already poisoned,"
            " so that no trigger can be applied: remove `trigger` from the command and from its"
            " experiment"
        )
    found = _stated(facts)
    for key, value in found.items():
        if not (key in ("target", "source") and _is_number(config.get(key))):
            _check_equal(key, config.get(key), value)
    given = {key: found.get(key, config.get(key)) for key in GIVEN}
    for key, what in (("target", "class is attacked"), ("ratio", "share is poisoned")):
        if given[key] is None:
            raise ConfigError(
                f"`{key}` is needed, because the files of `dataset.root` do not state which {what}:"
                f" give your assumption ({key}=...), which filters and tables use"
            )
    protocol = _part(config, "protocol")
    if protocol.get("apply_trigger") == "after_augmentation":
        raise ConfigError(
            "`protocol.apply_trigger=after_augmentation` is not possible with `dataset=poisoned`,"
            " whose images were triggered before augmentation"
        )
    choices = {key: value for key, value in facts.choices.items() if key in CHOICES}
    choices.setdefault("ratio_of", "all")
    trigger = {"_target_": TRIGGER, "name": facts.trigger or "unknown", "options": facts.options}
    return {**config, **given, "trigger": trigger, "protocol": {**protocol, **choices}}


def check_numbers(given: dict[str, Any], config: dict[str, Any], classes: tuple[str, ...]) -> None:
    """Raises ConfigError if a class that is given by its number is not the one that the data set
    states. `given` is the configuration before `with_attack`, and `config` the one after it."""
    for key in ("target", "source"):
        if _is_number(given.get(key)) and given[key] != config[key]:
            chosen = classes[class_number(key, given[key], classes)]
            _check_equal(key, chosen, config[key])


def _is_number(value: Any) -> bool:
    """Whether a class is given by its number; names are compared at once."""
    return isinstance(value, int) and not isinstance(value, bool)


def _part(config: dict[str, Any], key: str) -> dict[str, Any]:
    found = config.get(key)
    return found if isinstance(found, dict) else {}


def _stated(facts: ImportedFacts) -> dict[str, Any]:
    """The values of `GIVEN` that the set states; without ground truth, it does not state the
    ratio."""
    ratio = None if facts.n_poisoned is None else facts.ratio
    known: dict[str, Any] = {"target": facts.target, "source": facts.source, "ratio": ratio}
    known |= {key: facts.choices.get(key) for key in ("label_mode", "cover_rate")}
    found = {key: value for key, value in known.items() if value is not None}
    # A card with all choices names the source class, unless every class is attacked.
    return {"source": None, **found} if "poison_from" in facts.choices else found


def _check_equal(key: str, given: Any, found: Any) -> None:
    if given is None or given == found:
        return
    said = "null" if found is None else found
    raise ConfigError(
        f"`{key}`={given}, but the poisoned data set states {key}={said}: remove the option"
    )
