"""Finds the methods to check, and runs their checks."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from backdoor_lab.attacks.base import Trigger
from backdoor_lab.check_plugin import datasets, defenses, models, triggers
from backdoor_lab.check_plugin.finding import CheckError, Checks
from backdoor_lab.core.errors import ConfigError, LabError, reason_of
from backdoor_lab.core.instantiate import build
from backdoor_lab.defenses.options import FilterOptions
from backdoor_lab.pipeline.parts import defense_of, source_of
from backdoor_lab.plugin_configs import trust_of
from backdoor_lab.plugins.location import described
from backdoor_lab.plugins.methods import (
    GROUPS,
    Method,
    entry_points,
    methods,
    unknown_groups,
    untrusted,
)
from backdoor_lab.plugins.trust import Trust, folder_of, trusted
from backdoor_lab.training.models import check_model

_CAUSE = re.compile(r"`\S+` must return|\S+:\d+ raised \w+")
"""The beginning of the reason of a failure in one method or line, which many checks call."""


@dataclass(frozen=True)
class Outcome:
    """The result of one check of a method: `why` it failed, or None."""

    check: str
    why: str | None


def asked(name: str, overrides: Sequence[str]) -> tuple[list[Method], list[str]]:
    """Returns the methods called `name`, and the overrides that trust their plug-in.

    `name` is a file, whose methods are all checked, the package of an entry point, or an entry
    point of a package that `overrides` trusts. Naming a file or a package trusts it. Raises
    ConfigError if there is no such method.
    """
    if name.endswith(".py"):
        word = str(Path(name).expanduser().absolute()).replace("'", "\\'")
        return [], [*overrides, f"plugins=['{word}']"]
    listed = [*entry_points()]
    if any(each.plugin == name for each in listed) and folder_of(name) is not None:
        return [each for each in listed if each.plugin == name], [
            *overrides, f"allow_plugins=[{name}]",
        ]  # fmt: skip
    given = trust_of(overrides)
    found = [each for each in listed if each.name == name and given.plugin_of(each.module)]
    if found or given.files:
        return found, [*overrides]
    for each in listed:
        if each.name == name:
            raise ConfigError(str(untrusted(each.group, name, given)))
    raise _not_found(name, listed)


def _not_found(name: str, listed: Sequence[Method]) -> ConfigError:
    known = ", ".join(GROUPS.values())
    for group, value in unknown_groups():
        if name == value.partition(":")[0].partition(".")[0]:
            return ConfigError(
                f"the package {name} has an entry point ({value}) in the group `{group}`, which is"
                f" not known. The groups are {known}: correct the name and install it again"
            )
    near = difflib.get_close_matches(name, {n for each in listed for n in (each.name, each.plugin)})
    hint = f". Did you mean {near[0]}?" if near else ""
    return ConfigError(
        f"no installed package or entry point is called {name!r} and in one of the groups {known}:"
        f" install the package with python -m pip install --no-deps --editable FOLDER{hint}"
    )


def checked(name: str, overrides: Sequence[str]) -> Iterator[tuple[Method, Iterator[Outcome]]]:
    """Yields each method called `name` (see `asked`) with the outcomes of its checks. Keys of a
    method in `overrides`, such as ``trigger.size=3``, are set for the methods of this group."""
    found, words = asked(name, overrides)
    _composed(_without_options(words))  # This trusts the plug-in.
    chosen = found or list(methods(trusted(), {}).values())
    if name.endswith(".py"):
        stem = Path(name).stem
        chosen = [each for each in chosen if each.plugin == stem]
    if not chosen:
        raise ConfigError(
            f"{name} has no trigger, defense or data set: a class must derive from Trigger,"
            " SampleFilter, ModelBasedFilter, ModelRepair or Source of this package"
        )
    for method in chosen:
        yield method, _outcomes(method, words)


def _outcomes(method: Method, words: Sequence[str]) -> Iterator[Outcome]:
    try:
        checks, given = _checks(method, words)
    except LabError as error:
        yield Outcome("can be made", str(error))
        return
    except Exception as error:
        yield Outcome("can be made", _raised(error, method))
        return
    yield Outcome("can be made", None)
    causes: dict[str, str] = {}
    for name, check in checks.items():
        why = None
        try:
            check(given)
        except (CheckError, LabError) as error:
            why = str(error)
        except Exception as error:
            why = _raised(error, method)
        cause = _CAUSE.match(why or "")
        first = name if cause is None else causes.setdefault(cause[0], name)
        yield Outcome(name, why if first == name else f"not checked, see {first!r} above")


def _checks(method: Method, words: Sequence[str]) -> tuple[Checks, Any]:
    """Returns the checks of a method, and what they take."""
    options = [word for word in words if word.lstrip("+").startswith(f"{method.group}.")]
    config = _composed([f"{method.group}={method.name}", *_without_options(words), *options])
    part = config[method.group]
    if method.group == "trigger":

        def ready(*shape: int) -> Trigger:
            made = build("trigger", part, Trigger)  # type: ignore[type-abstract]
            return triggers.prepared(made, *shape)

        build("trigger", part, Trigger)  # type: ignore[type-abstract]
        return triggers.CHECKS, functools.cache(ready)
    if method.group == "defense":

        def made(**changes: Any) -> Any:
            return defense_of({"defense": part | changes, "protocol": asdict(FilterOptions())})

        return defenses.checks_of(made()), made
    if method.group == "dataset":
        source_of(config)
        return datasets.CHECKS, lambda: source_of(config)
    check_model(part)
    return models.CHECKS, part


def _without_options(words: Sequence[str]) -> list[str]:
    groups = tuple(f"{group}." for group in GROUPS)
    return [word for word in words if not word.lstrip("+").startswith(groups)]


def _composed(overrides: Sequence[str]) -> dict[str, Any]:
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

    from backdoor_lab.config_loader import conf_dir
    from backdoor_lab.run import register
    from backdoor_lab.sweep.compose import plain

    register()
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        try:
            return plain(compose("config", [*overrides]))
        except MissingMandatoryValue as error:
            raise ConfigError(
                f"`{error.full_key}` has no value: give the parameter of `__init__` a default, or"
                f" set it ({error.full_key}=VALUE)"
            ) from error
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(" ".join(str(error).split())) from error


def _raised(error: Exception, method: Method) -> str:
    trust: Trust = trusted()
    return f"{described(error, trust, method.plugin)} raised {reason_of(error)}"
