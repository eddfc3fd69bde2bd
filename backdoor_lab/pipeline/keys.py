"""Checks the keys and the plain values of a cell's configuration; needs no data."""

from __future__ import annotations

from typing import Any

from backdoor_lab.attacks.plan import LABEL_MODES, check_ratio
from backdoor_lab.core import validation
from backdoor_lab.core.errors import ConfigError, unknown
from backdoor_lab.exchange.network_file import NEEDED as NEEDED_OF_MODEL
from backdoor_lab.pipeline.cell import DECIDES
from backdoor_lab.pipeline.parts import Parts
from backdoor_lab.training.model_group import FACTORY, check_optional
from backdoor_lab.training.transformations import canonical_names

PLAIN = ("target", "source", "ratio", "label_mode", "cover_rate", "retrain", "retrain_seed", "seed")
ELSEWHERE = ("name", "dataset_label", "trainer", "logger", "store", "experiment", "dry_run",
             "estimate_first", "retries", "fail_fast", "allow_plugins", "plugins",
             "attacked", "attacked_normalization")  # fmt: skip
PROTOCOL = (
    "name", "version", "ratio_of", "placement", "poison_from", "asr_on", "apply_trigger",
    "filter_scope", "removal_budget", "max_removed", "center", "layer", "clean_holdout",
)  # fmt: skip
RETRAIN_SEEDS = ("new", "same")
MEASURE = ("asr_under",)
NEEDED = {
    "protocol": PROTOCOL,
    "model": NEEDED_OF_MODEL,
    "trainer": ("accelerator", "precision", "channels_last", "threads", "progress", "checkpoint"),
    "logger": (),
    "measure": MEASURE,
    "store": ("root",),
}


def check_keys(config: dict[str, Any]) -> Parts:
    """Create the objects that a configuration describes, without reading data.

    Raises ConfigError for unknown keys and for plain values of the wrong type.
    """
    validation.keys("", config, (*DECIDES, *PLAIN, *ELSEWHERE, "measure"))
    _complete(config)
    for group in DECIDES:
        if not isinstance(config.get(group), dict):
            raise unknown(f"`{group}`:", config.get(group), ["the choices listed by --help"])
        validation.safe_name(f"{group}.name", config[group].get("name") or "unnamed")
    validation.keys("protocol", config["protocol"], PROTOCOL)
    validation.keys("store", config["store"], ("root",))
    check_optional(config["model"])
    validation.keys("measure", config["measure"], MEASURE)
    canonical_names(config["measure"]["asr_under"])
    validation.choice("retrain_seed", config["retrain_seed"], RETRAIN_SEEDS)
    for key in ("retrain", "dry_run", "estimate_first", "fail_fast"):
        validation.flag(key, config.get(key, False))
    if config.get("dataset_label") is not None:
        validation.text("dataset_label", config["dataset_label"])
    validation.whole("retries", config.get("retries", 1), low=0)
    validation.whole("protocol.version", config["protocol"]["version"], low=1)
    validation.whole("protocol.clean_holdout", config["protocol"]["clean_holdout"], low=0)
    validation.text("protocol.layer", config["protocol"]["layer"])
    check_ratio(config["ratio"], config["protocol"]["ratio_of"])
    validation.whole("seed", config["seed"], low=0, below=2**63)
    if config["label_mode"] is not None:
        validation.choice("label_mode", config["label_mode"], LABEL_MODES)
    if config["cover_rate"] is not None:
        validation.number("cover_rate", config["cover_rate"], low=0, below=1000)
    return Parts.of(config)


def _complete(config: dict[str, Any]) -> None:
    # `~key` on the command line removes a key, and `group=null` empties a group.
    for key in PLAIN + tuple(NEEDED):
        if key not in config or (key in NEEDED and not isinstance(config[key], dict)):
            raise ConfigError(f"`{key}` is required but missing: do not use ~{key} or {key}=null")
        for name in NEEDED.get(key, ()):
            own = key == "model" and FACTORY in config[key] and name != "name"  # See `completed`.
            if name not in config[key] and not own:
                raise ConfigError(f"`{key}.{name}` is missing: give it a value")
    root = config["store"]["root"]
    if not isinstance(root, str) or not root:
        raise ConfigError(f"`store.root` must be the path of a folder, got {root!r}")
