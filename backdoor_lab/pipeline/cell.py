"""A cell of a sweep: its checked configuration, its objects and its identity."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from backdoor_lab import identity, returned
from backdoor_lab.attacks.base import Trigger
from backdoor_lab.attacks.plan import PoisonSpec, implied
from backdoor_lab.core.atomic_io import digest
from backdoor_lab.core.instantiate import takes_options, with_shared
from backdoor_lab.core.letters import transcribed
from backdoor_lab.defenses.base import OracleControl
from backdoor_lab.defenses.options import OPTION_KEYS
from backdoor_lab.pipeline.classes import class_number
from backdoor_lab.pipeline.participants import marks
from backdoor_lab.pipeline.parts import Choice, Parts, model_label, shared
from backdoor_lab.training import model_group
from backdoor_lab.training.recipe import Recipe
from backdoor_lab.training.transformations import canonical_names

DECIDES = ("dataset", "model", "trigger", "protocol", "defense", "recipe")
PLANNED = (
    "ratio_of",
    "placement",
    "poison_from",
    "asr_on",
    "apply_trigger",
    "label_mode",
    "cover_rate",
)


@dataclass(frozen=True)
class Cell:
    """Everything that affects a cell's result, and nothing else.

    `config` is the plain, resolved configuration and `parts` the objects created from it. `classes`
    and `fingerprint` come from the data set, so that ``target=2`` and ``target=bird`` are the same
    cell wherever the data is stored. Create a cell with `Cell.of`.
    """

    config: dict[str, Any]
    classes: tuple[str, ...]
    fingerprint: str
    parts: Parts = field(compare=False, repr=False)

    @classmethod
    def of(cls, config: dict[str, Any], classes: tuple[str, ...], fingerprint: str) -> Cell:
        """Create the cell that a configuration describes. Raises ConfigError for unknown options
        and for values that a class rejects."""
        return cls(config, classes, fingerprint, Parts.of(config))

    @cached_property
    def id(self) -> str:
        """A readable id, valid as a folder name; different cells have different ids."""
        choices = self.choices
        words = [choices["trigger"], *self._classes_named, f"r{choices['ratio']:g}"]
        words += [choices["defense"], f"s{choices['seed']}"]
        named = transcribed("-".join(map(str, words)))
        slug = re.sub(r"[^a-z0-9_.-]+", "_", named.lower())
        return f"{slug[:53].strip('.-_')}-{digest(self.decides(), 10)}"

    @property
    def _classes_named(self) -> list[str]:
        """The target class, preceded by the source class if the configuration names one."""
        named = self.config["source"] is not None
        return [f"{self.source}-to-{self.target}"] if named else [self.target]

    def decides(self) -> dict[str, Any]:
        """The configuration that affects results: the input of the cell's hash.

        Transformations change the hash: a cell with transformations has its own record, but shares
        its networks with the otherwise identical cell without transformations.
        """
        return {
            "model": self.model_facts,
            "trigger": {"name": self.config["trigger"]["name"], **self.trigger_facts},
            "protocol": {k: v for k, v in self.protocol.items() if k not in OPTION_KEYS},
            "defense": self.used_options,
            "code": self.code,
            "data": self.fingerprint,
            "dataset": self.config["dataset"]["name"],
            "recipe": {"name": self.config["recipe"]["name"], **self.recipe.decides()},
            "target": self.target,
            "source": self.source,
            "ratio": self.ratio,
            "seed": self.seed,
        } | self._exceptions()

    @cached_property
    def code(self) -> identity.Marks:
        """The version of each component that the cell uses and, if its code was edited, a hash of
        the code. Part of the cell's id."""
        return marks(self, self.parts.data)

    def _exceptions(self) -> dict[str, Any]:
        # A precision that is set explicitly is part of the identity. `auto` is not, since its
        # meaning depends on the machine.
        wanted = str(self.config["trainer"]["precision"])
        found: dict[str, Any] = {} if wanted == "auto" else {"precision": wanted}
        found |= {"retrain_seed": "same"} if self.same_seed else {}
        attacked = self.parts.attacked
        found |= {} if attacked is None else {"attacked": attacked.decides()}
        found |= {"measure": {"asr_under": list(self.asr_under)}} if self.asr_under else {}
        return found if self.retrain else found | {"retrain": False}

    @cached_property
    def options(self) -> dict[str, Any]:
        """The defense's options; those not set in its configuration come from the protocol."""
        found = _complete(self.config["defense"], shared(self.config))
        source = self.parts.clean_source
        if source is None:
            return found
        # The content, not the path of its files or a name derived from the path.
        fingerprint = source.fingerprint()
        return found | {"data": {"name": found["data"].get("name"), "fingerprint": fingerprint}}

    @property
    def used_options(self) -> dict[str, Any]:
        """Returns the options that affect the result. The defense `none` and all repairs ignore the
        filter options, so a sweep over filter options contains only one cell with each of these
        defenses."""
        unused = getattr(self.defense, "unused", ())
        if not takes_options(type(self.defense)):
            unused = OPTION_KEYS
        return {k: v for k, v in self.options.items() if k not in unused}

    @cached_property
    def choices(self) -> dict[str, Any]:
        """The values that label the rows and columns of tables."""
        names = {key: self.config[key]["name"] for key in DECIDES}
        return names | {
            # If `dataset_label` is unset: the name of the archive or file.
            "dataset": self.config.get("dataset_label") or names["dataset"] or self.parts.data.name,
            "model": model_label(self.model, self.parts.attacked),
            "target": self.target,
            "source": self.source,
            "ratio": self.ratio,
            "seed": self.seed,
        }

    @cached_property
    def protocol(self) -> dict[str, Any]:
        """The protocol after all overrides, as printed below a table."""
        said = dict(self.config["protocol"])
        said |= with_shared(self.config["defense"], shared(self.config))
        said["layer"] = getattr(self.defense, "feature_layer", None) or said["layer"]
        said |= {"label_mode": self._label_mode, "cover_rate": self._cover_rate}
        said["clean_holdout"] = int(said["clean_holdout"])  # 2e1 is read as a float.
        chosen_by_trigger = self.config["source"] is None and self.source is not None
        return said | implied(self._label_mode, on_source=chosen_by_trigger)

    @cached_property
    def plan(self) -> PoisonSpec:
        """The specification of the attack, with classes as numbers."""
        words = {key: self.protocol[key] for key in PLANNED}
        source, target = self.pair
        covered = self.trigger.cover_from(target, source, len(self.classes))
        return PoisonSpec(target, source, self.ratio, **words, cover_from=covered)

    @property
    def pair(self) -> tuple[int | None, int]:
        """The source class (None if every class is attacked) and the target class, as numbers."""
        source = None if self.source is None else self.classes.index(self.source)
        return source, self.classes.index(self.target)

    @property
    def attack(self) -> dict[str, Any]:
        """The stage inputs that determine the poison."""
        # The trigger's options and the classes determine `cover_from`.
        plan = {k: v for k, v in asdict(self.plan).items() if k not in ("asr_on", "cover_from")}
        return {"trigger": self.trigger_identity, "plan": plan, "seed": self.seed} | self.surrogate

    @property
    def trigger_identity(self) -> list[Any]:
        """The stage inputs that determine the trigger: its options and its code."""
        return [self.trigger_facts, self.code["triggers"]]

    @property
    def surrogate(self) -> dict[str, Any]:
        """The stage inputs that determine the attacker's surrogate network; empty if the trigger
        uses none."""
        if not self.trigger.uses_surrogate:
            return {}
        code = [identity.stage("train"), self.code["models"]]
        return {"surrogate": [self.model_facts, self.recipe.decides(), *code]}

    @cached_property
    def trigger_facts(self) -> dict[str, Any]:
        """The trigger's options. A file is identified by the hash of its content, not by its
        path."""
        paths, later = self.trigger.path_options, self.trigger.later
        facts = {
            k: v
            for k, v in nameless(self.config["trigger"]).items()
            if k not in paths and not (k in later and v == later[k])
        }
        content = self.trigger.file_hash()
        return facts | ({"content": content} if content else {})

    @property
    def target(self) -> str:
        return self.classes[class_number("target", self.config["target"], self.classes)]

    @property
    def source(self) -> str | None:
        if self.config["source"] is not None:
            return self.classes[class_number("source", self.config["source"], self.classes)]
        if not self.trigger.source_specific:
            return None
        return self.classes[(self.classes.index(self.target) + 1) % len(self.classes)]

    @property
    def retrain(self) -> bool:
        """Whether a network is retrained on the data that the defense keeps."""
        return bool(self.config["retrain"])

    @property
    def same_seed(self) -> bool:
        """Whether retraining uses the seed of the first training (``retrain_seed=same``)."""
        return bool(self.config.get("retrain_seed") == "same")

    @cached_property
    def asr_under(self) -> tuple[str, ...]:
        """The transformations under which the networks are also evaluated."""
        return canonical_names((self.config.get("measure") or {}).get("asr_under", ()))

    @property
    def _label_mode(self) -> str:
        return str(self.config["label_mode"] or self.trigger.label_mode)

    @property
    def _cover_rate(self) -> float:
        given = self.config["cover_rate"]
        return float(self.trigger.cover_rate if given is None else given)

    @property
    def ratio(self) -> float:
        # range(0.05,0.2,0.05) yields 0.15000000000000002 instead of 0.15.
        return float(f"{self.config['ratio']:.10g}")

    @property
    def seed(self) -> int:
        return int(self.config["seed"])

    @property
    def recipe(self) -> Recipe:
        return self.parts.recipe

    @property
    def trigger(self) -> Trigger:
        return self.parts.trigger

    @property
    def defense(self) -> Choice:
        return self.parts.defense

    @property
    def model(self) -> dict[str, Any]:
        """The `model` group of the configuration; see `Parts`."""
        return self.parts.model

    @property
    def model_facts(self) -> dict[str, Any]:
        return model_group.decides(self.model)

    @property
    def store_root(self) -> str:
        """The folder of the stage store."""
        return str(self.config["store"]["root"])

    @property
    def trainer(self) -> dict[str, Any]:
        """The `trainer` group of the configuration."""
        return dict(self.config["trainer"])

    @property
    def requires(self) -> list[str]:
        """What the defense's `requires` method returns; empty for a control."""
        defense = self.defense
        if isinstance(defense, OracleControl):
            return []
        return returned.requirements(defense, defense.requires())


def _complete(given: dict[str, Any], shared: dict[str, Any]) -> dict[str, Any]:
    """A defense's options, including those of a filter nested in it. Options that are not set come
    from `shared`."""
    values = with_shared(given, shared)
    inside = {k: v for k, v in given.items() if isinstance(v, dict) and "_target_" in v}
    return given | values | {k: _complete(v, values) for k, v in inside.items()}


def nameless(config: dict[str, Any]) -> dict[str, Any]:
    """A group of the configuration without its `name`, which does not affect results."""
    return {key: value for key, value in config.items() if key != "name"}
