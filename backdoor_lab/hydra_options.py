"""Checks Hydra's own options and the overrides of a command, and writes messages for unknown
keys."""

from __future__ import annotations

import argparse
import difflib
import functools
import importlib.util
import re
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from hydra._internal.utils import get_args_parser
from hydra.errors import MissingConfigException
from omegaconf import DictConfig, OmegaConf, flag_override

from backdoor_lab.core import validation
from backdoor_lab.core.errors import ConfigError, reason_of, unknown
from backdoor_lab.core.instantiate import takes
from backdoor_lab.core.options import no_key, unknown_flag
from backdoor_lab.core.paths import absolute, check_writable
from backdoor_lab.core.validation import new_name, new_value
from backdoor_lab.plugins.methods import untrusted
from backdoor_lab.plugins.trust import PACKAGE, Trust

BAD_VALUE = (ValueError, TypeError, AttributeError, LookupError)
"""Errors of the standard library for a wrong logging configuration."""
SUBDIR = "${cell_id:}"
LAUNCHERS = {
    "hydra_joblib_launcher": ("joblib", "hydra-joblib-launcher"),
    "hydra_submitit_launcher": ("submitit", "hydra-submitit-launcher"),
    "hydra_ray_launcher": ("ray", "'backdoor-lab[ray]'"),
}
"""For each Hydra plugin that starts cells: the library that it needs, and the package to
install."""
_NUMBER = re.compile(r"(?<![\w.\-])[+-]?(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(?:[eE][+-]?\d+)?(?![\w.])")
_QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"")
_NOT_THERE = re.compile(
    r"Could not (?:override '([^']+)'|delete from config\. '([^']+)' does not exist)"
)


def check_overrides(overrides: Iterable[str]) -> None:
    """Raises ConfigError if an override contains a nonzero number that is so small that it is read
    as 0."""
    for each in overrides:
        _, _, value = each.partition("=")
        for found in _NUMBER.findall(_QUOTED.sub("''", value)):
            digits = re.split("[eE]", found)[0]
            if float(found) == 0 and re.search("[1-9]", digits):
                short = found if len(found) < 40 else f"{found[:40]}…"
                raise ConfigError(
                    f"`{_short(each)}`: {short} is too small to be distinguished from 0: give 0, or"
                    " a number above 1e-300"
                )


class _Flags(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}: --hydra-help lists the flags")


def flags_first(words: list[str], conf: Path) -> list[str]:
    """Returns the words of a command line with all flags before the overrides, as Hydra's parser
    requires. Raises ConfigError for an unknown flag, and suggests the key or the flag that is
    spelled similarly. `conf` is the folder of configuration files."""
    parser = get_args_parser()
    parser.__class__ = _Flags  # The parser's own `error` method would print twenty lines of usage.
    found, unknown_flags = parser.parse_known_intermixed_args(words)
    if unknown_flags:
        flags = [flag for flag in parser._option_string_actions if flag.startswith("--")]
        plain: Any = OmegaConf.to_container(OmegaConf.load(conf / "config.yaml"), resolve=False)
        keys = dict.fromkeys((path.name for path in conf.iterdir() if path.is_dir()), "VALUE")
        keys |= {key: "true" if value is False else "VALUE" for key, value in plain.items()}
        raise unknown_flag(unknown_flags[0], words, flags, keys)
    overrides: list[str] = found.overrides
    for before, word in zip(["", *overrides], overrides, strict=False):
        if "=" not in word and not word.startswith("~"):
            raise no_key(word, before)
    return [word for word in words if word not in overrides] + overrides


def check_hydra(config: DictConfig, conf: Path) -> None:
    """Check the folders and the launcher in the `hydra` section of a composed configuration, and
    expand `~` in the folders. `conf` is the folder of configuration files. Raises ConfigError."""
    if OmegaConf.select(config, "hydra") is None:
        return
    hydra = config.hydra
    subdir = hydra.sweep._get_node("subdir")._value()
    if subdir != SUBDIR:
        raise ConfigError(
            f"`hydra.sweep.subdir`={subdir} cannot be set: a cell's folder is named after its id;"
            " hydra.sweep.dir sets the sweep's folder"
        )
    for section in ("run", "sweep"):
        node = hydra[section]._get_node("dir")
        given = None if node is None else node._value()
        if isinstance(given, str) and given != _default(conf, section):
            with flag_override(config, ["readonly", "struct"], [False, False]):
                hydra[section].dir = _folder(f"hydra.{section}.dir", given)
    _check_launcher(str(OmegaConf.select(hydra, "launcher._target_") or ""))
    batch = OmegaConf.select(hydra, "sweeper.max_batch_size")
    if batch is not None:
        validation.whole("hydra.sweeper.max_batch_size", batch, low=1)


def logging_error(error: BaseException) -> ConfigError | None:
    """Returns an error that names the setting of Hydra if `error` was raised while Hydra configured
    the logging, otherwise None."""
    frames = [frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)]
    if "configure_log" not in frames or not isinstance(error, (*BAD_VALUE, AssertionError)):
        return None
    if frames[-1] == "configure_log" and isinstance(error, AssertionError):
        return ConfigError(
            "`hydra.verbose` must be true, false, or the names of loggers: [NAME,NAME]"
        )
    key = "hydra.job_logging" if "run_job" in frames else "hydra.hydra_logging"
    cause = f": {reason_of(error.__cause__)}" if error.__cause__ else ""
    return ConfigError(f"`{key}`: {reason_of(error)}{cause}")


def not_there(error: BaseException) -> str | None:
    """The key that a Hydra error reports as unknown; None for other errors."""
    found = _NOT_THERE.match(str(error))
    return (found[1] or found[2]) if found else None


def refused_by_hydra(error: BaseException, trust: Trust) -> ConfigError | None:
    """Returns an error with a better message than Hydra's for a choice that does not exist, for
    several values without -m, and for ``+group=`` if the group already has a choice. Returns None
    for other errors. `trust` are the trusted plug-ins."""
    said = str(error)
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        if current := new_value(group, name):
            return ConfigError(f"`{group}={name}` was renamed to `{group}={current}`")
        if remedy := untrusted(group, name, trust):
            return ConfigError(remedy)
        return unknown(f"choice of `{group}`:", name, error.options)
    if found := re.match(
        r"Ambiguous value for argument '(.*)'\n|Sweep parameters '(.*)' req", said
    ):
        given = found[1] or found[2]
        return ConfigError(
            f"`{given}` gives several values, which need a sweep: add -m (python -m backdoor_lab -m"
            f" {given}); with --help, --cfg or --info, give one value. Write a list as [a,b],"
            " and text that contains a comma as 'a,b'."
        )
    if found := re.match(r"(\S+) appears more than once in the final defaults list", said):
        return ConfigError(f"`{found[1]}` is already chosen: write {found[1]}= without a `+`")
    return None


def missing_part(key: str, config: DictConfig, error: BaseException) -> str | None:
    """The key that a message about Hydra's `error` should report as unknown.

    This is `key` or, if a dictionary was given for `key`, a key inside it. None if `config` has
    `key`, since the error then has another cause: for example, Hydra rejects ``~key`` if the value
    of `key` is null.
    """
    inside = str(getattr(error.__cause__, "full_key", None))
    if inside.startswith(f"{key}."):
        return inside
    parent, _, last = key.rpartition(".")
    section = OmegaConf.select(config, parent) if parent else config
    return None if OmegaConf.is_dict(section) and last in section else key


def not_given(error: ConfigError, words: Iterable[str], conf: Path) -> str:
    """Returns a hint to append to the message of `error` if the error is about a key that the
    command line does not set: one that the chosen experiment sets, or the target class. Otherwise
    an empty string. `words` are the arguments of the command line, and `conf` is the folder of
    configuration files."""
    given = dict(word.lstrip("+").partition("=")[::2] for word in words)
    if "target" not in given and re.search("`target` .* is not known", str(error)):
        return " The command does not set it: add target=NAME"
    name = given.get("experiment", "")
    file = conf / "experiment" / f"{name}.yaml"
    # A sweep raises the error again, with the number of the cell.
    keys = error.unknown_keys or getattr(error.__cause__, "unknown_keys", ())
    if not keys or not re.fullmatch(r"\w+", name) or not file.is_file():
        return ""
    found = OmegaConf.load(file)
    theirs = [k for k in keys if k not in given and OmegaConf.select(found, k) is not None]
    if keys[0] not in theirs:
        return ""
    removed = " ".join(f"'~{key}'" for key in theirs)
    return f" `experiment={name}` sets it, for another choice: to leave it out, add {removed}"


def no_such_key(key: str, config: DictConfig, conf: Path) -> ConfigError:
    """The error for a `key` that `config` does not have.

    Its message names the innermost section of `key` that exists, the keys of this section, and, if
    the section is a group, the other choices that have the missing key.
    """
    parts = key.split(".")
    depth = 0
    for end in range(1, len(parts)):
        section = OmegaConf.select(config, ".".join(parts[:end]))
        if not OmegaConf.is_config(section):
            break
        depth = end if OmegaConf.is_dict(section) else depth
    where, missing = ".".join(parts[:depth]), parts[depth]
    section = OmegaConf.select(config, where) if where else config
    hidden = ("_target_", "hydra")
    # A class of a plug-in may have a parameter that this package has renamed.
    ours = str(section.get("_target_", PACKAGE)).startswith(PACKAGE)
    keys = [k for k in map(str, section) if k not in hidden and not (ours and new_name(where, k))]
    if new := new_name(re.sub(r"\.(\d+)", r"[\1]", where), missing):
        new = f"{where}.{new}" if where else new
        text = f"`{key}` was renamed to `{new}`"
        known = new.rpartition(".")[2] in keys
        return ConfigError(text if known else f"{text}: {no_such_key(new, config, conf)}")
    if not where:
        return unknown("key", missing, keys)
    chosen = OmegaConf.select(config, f"hydra.runtime.choices.{where}")
    owner = f"`{where}={chosen}`" if chosen else f"`{where}`"
    if missing in keys:
        return ConfigError(f"key {key!r} is not known: `{where}.{missing}` has no subkeys")
    if not keys:
        return ConfigError(f"key {key!r} is not known: {owner} has no keys")
    near = difflib.get_close_matches(missing, keys, n=1)
    hint = f" Did you mean {f'{where}.{near[0]}'!r}?" if near else ""
    others = [name for name in _choices_with(conf, where, missing) if name != chosen]
    more = f" Choices of `{where}` that have it: {', '.join(others)}." if others else ""
    return ConfigError(
        f"key {key!r} is not known: {owner} has no key {missing!r}.{hint}{more} Keys of"
        f" `{where}`: {', '.join(keys)}."
    )


def check_renamed(config: DictConfig, conf: Path) -> None:
    """Raises ConfigError for a renamed key in the sections `trigger` and `defense` of a composed
    configuration, unless the section's class takes an option of that name."""
    for section in ("trigger", "defense"):
        node = config._get_node(section)
        if not isinstance(node, DictConfig) or node._is_none() or node._is_interpolation():
            continue
        for key in map(str, node):
            if new_name(section, key) and not takes(section, node.get("_target_"), key):
                raise no_such_key(f"{section}.{key}", config, conf)


def _choices_with(conf: Path, group: str, key: str) -> list[str]:
    files = sorted((conf / group).glob("*.yaml")) if group.isidentifier() else []
    return [path.stem for path in files if key in OmegaConf.load(path)]


@functools.cache
def _default(conf: Path, section: str) -> str | None:
    own = OmegaConf.load(conf / "config.yaml")
    assert isinstance(own, DictConfig)
    value: str | None = own.hydra[section]._get_node("dir")._value()
    return value


def _folder(name: str, given: str) -> str:
    """Expand `~` in the path of a folder, and check that the folder is writable. If the path
    contains ``${…}``, only the part before the first ``${`` is expanded and checked."""
    head, dollar, rest = given.partition("${")
    if dollar and not head:
        return given
    path = absolute(name, head)
    check_writable(path)
    if not head.startswith("~"):
        return given
    slash = "/" if head.endswith("/") else ""
    return f"{path}{slash if dollar else ''}{dollar}{rest}"


def _check_launcher(target: str) -> None:
    plugin = target.removeprefix("hydra_plugins.").partition(".")[0]
    if plugin not in LAUNCHERS:
        return
    library, install = LAUNCHERS[plugin]
    for module in (f"hydra_plugins.{plugin}", library):
        if not _is_installed(module):
            name = plugin.removeprefix("hydra_").removesuffix("_launcher")
            raise ConfigError(
                f"`hydra/launcher`: {name} needs {module}, which is not installed: pip install"
                f" {install}"
            )


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:80]}…"
