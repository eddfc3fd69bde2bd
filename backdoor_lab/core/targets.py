"""Checks that a configuration names only allowed code, before anything is imported.

Hydra and `logging.config` import and call what a configuration names: callbacks, launchers,
sweepers, log handlers and formatters. A configuration may name only this package's classes, the
loggers of `conf/logger`, the classes of Hydra and `logging` listed here, the launchers of the
joblib, submitit and Ray plugins, and code in the plug-ins that the user lists in `allow_plugins`
and `plugins`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from typing import Any

from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.instantiate import FOLDERS, OWN, to_trust, why_refused
from backdoor_lab.plugins.trust import trusted

LOGGERS = {
    "pytorch_lightning.loggers.CSVLogger": "pytorch_lightning",
    "pytorch_lightning.loggers.TensorBoardLogger": "tensorboard",
    "pytorch_lightning.loggers.WandbLogger": "wandb",
    "pytorch_lightning.loggers.MLFlowLogger": "mlflow",
}
"""The loggers of conf/logger, each with the package that it needs."""

_SUBMITIT = "hydra_plugins.hydra_submitit_launcher.submitit_launcher"
HYDRA = {
    "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
    "hydra._internal.core_plugins.basic_sweeper.BasicSweeper",
    "hydra.experimental.callbacks.LogJobReturnCallback",
    "hydra.experimental.callbacks.PickleJobInfoCallback",
    "backdoor_lab.sweep.single.BeforeRun",
    "hydra_plugins.backdoor_lab_sweeper.ResumeSweeper",
    "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher",
    f"{_SUBMITIT}.LocalLauncher",
    f"{_SUBMITIT}.SlurmLauncher",
    "hydra_plugins.hydra_ray_launcher.ray_launcher.RayLauncher",
}
"""The classes that the `hydra` section may name. Only parts of Hydra are listed, since
`hydra.utils` could import any name."""

LOGGING = {
    "backdoor_lab.core.output.LogFile",
    "backdoor_lab.core.output.Terminal",
    "logging.Formatter",
    "logging.NullHandler",
    "logging.FileHandler",
    "logging.StreamHandler",
    "logging.handlers.RotatingFileHandler",
    "logging.handlers.TimedRotatingFileHandler",
    "logging.handlers.WatchedFileHandler",
}
STREAMS = {"ext://sys.stdout", "ext://sys.stderr"}
"""The ``ext://`` objects that a logging configuration may always use; `logging.config` imports all
others, so they must be allowed by name."""

NAMED = ("_target_", "()", "class", "worker_process_setup_hook")
"""Keys whose value is the dotted name of a class or function."""

OUTPUT_DIR = "/<output_dir>"
"""Placeholder for ``hydra.runtime.output_dir`` until Hydra sets it."""

FACTORY = "model.factory"
"""The key whose value, such as ``package.module:make``, names a function that makes a network."""
NAMED_IN_LOGGING = ("queue", "listener", "factory")
LOG_SECTIONS = ("hydra.job_logging", "hydra.hydra_logging")
_PACKAGE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*\Z", re.ASCII)
_FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*\Z", re.ASCII)
_LOG_FILE = re.compile(rf"({OUTPUT_DIR}/+)?\w[\w.-]*\.log\Z")
_ENVIRONMENT = re.compile(
    r"(LD_|DYLD_|PYTHON|GIT_|HYDRA_|BASH_|OPENSSL_|SSL_)\w*\Z|(\w*PATH|ENV|SHELL|IFS)\Z"
)


def check_targets(config: Any, allowed: Iterable[str] = (), where: str = "") -> None:
    """Raises ConfigError for the first disallowed class or function named in `config`, a resolved
    configuration.

    `where` is the key of `config`. `allowed`: the packages in `allow_plugins`, for the `hydra`
    section. A trigger, a defense, a data set and a network may be in any plug-in that is trusted in
    this process (see plugins/trust.py).
    """
    trusted = tuple(allowed)
    for path, key, value in _leaves(config, where):
        logging = path.startswith(LOG_SECTIONS)
        packages = trusted if path.startswith("hydra.") else ()
        if is_named(path, key):
            check_name(path, value, packages)
        elif path == FACTORY and value is not None:
            _check_factory(value)
        elif logging and str(value).startswith("ext://") and value not in STREAMS:
            check_name(path, str(value).removeprefix("ext://"), packages)
        elif logging and key == "filename" and not _LOG_FILE.match(str(value)):
            raise ConfigError(
                f"`{path}`={str(value).replace(OUTPUT_DIR, '${hydra.runtime.output_dir}')!r} is not"
                " allowed: a log file must be in the cell's folder"
                " (${hydra.runtime.output_dir}/NAME.log) or in the current folder (NAME.log)"
            )
        elif path.startswith("hydra.job.env_set."):
            _check_variable(path, key, value)


def is_named(path: str, key: str) -> bool:
    """Whether the value at `path`, whose last part is `key`, names a class or function to
    import."""
    return key in NAMED or (key in NAMED_IN_LOGGING and path.startswith(LOG_SECTIONS))


def check_name(path: str, name: object, packages: Iterable[str] = ()) -> None:
    """Raises ConfigError if `name`, a class or function named at the key `path` of the
    configuration, is not allowed there. None is always allowed."""
    if name is None or (isinstance(name, (dict, list)) and not path.endswith("._target_")):
        return  # The entries of a dictionary or list are checked separately.
    if isinstance(name, str) and (_known(path, name) or _admitted(name, packages)):
        return
    said = f"`{path}`: {name!r} is not allowed, and nothing was imported. Allowed here are "
    if path == "model._target_":
        raise ConfigError(
            f"`{path}`: a network is not named by its class, and nothing was imported. For a"
            " network of a plug-in, write the name of a function instead, `factory:"
            " package.module:function`; see backdoor_lab/plugins/README.md"
        )
    if path.startswith("hydra."):
        raise ConfigError(
            f"{said}Hydra's own classes, the usual log handlers, and the joblib, submitit and Ray"
            " launchers; if you trust another package, name it on the command line:"
            " allow_plugins=[package]"
        )
    raise ConfigError(
        f"{said}the classes of backdoor_lab.attacks, .defenses and .data, and the loggers in"
        " conf/logger"
        f"{why_refused(path, name)}"
    )


def _check_factory(value: object) -> None:
    if not isinstance(value, str) or not _FACTORY.match(value):
        raise ConfigError(
            f"`{FACTORY}` must name a function in a plug-in, such as my_package.module:make, got"
            f" {value!r}"
        )
    if trusted().plugin_of(value.partition(":")[0]) is None:
        raise ConfigError(
            f"`{FACTORY}`: {value} is not in a trusted plug-in, and nothing was imported:"
            f" {to_trust(value.partition(':')[0])}"
        )


def package_names(value: object) -> tuple[str, ...]:
    """Returns `allow_plugins` as a sorted tuple. Raises ConfigError unless it is a list of
    packages."""
    if not isinstance(value, (list, tuple)) or not all(_is_package(each) for each in value):
        raise ConfigError(
            f"`allow_plugins` must be a list of package names (allow_plugins=[my_launcher]),"
            f" got {value!r}"
        )
    return tuple(sorted(set(value)))


def check_search_path(path: str, packages: Iterable[str] = ()) -> None:
    """Raises ConfigError if `path`, an entry of Hydra's search path, would import a package that is
    not allowed."""
    scheme, _, rest = path.partition("://")
    name = rest.replace("/", ".").strip(".")
    own = ("hydra", "backdoor_lab", "hydra_plugins")  # Hydra imports all of hydra_plugins itself.
    if scheme == "pkg" and name.split(".")[0] not in own and not _admitted(f"{name}.", packages):
        raise ConfigError(
            f"the configuration search path {path!r} would import the package {name!r}: give a"
            " folder (file://…), or name the package on the command line: allow_plugins=[package]"
        )


def _leaves(value: Any, where: str, key: str = "") -> Iterator[tuple[str, str, Any]]:
    """Yields (path, last key, value) for every entry of nested dictionaries and lists."""
    yield where, key, value
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(inner, f"{where}.{name}" if where else str(name), str(name))
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            # List entries under such a key are also used as names.
            yield from _leaves(inner, f"{where}[{index}]", key)


def _known(path: str, name: str) -> bool:
    if path.startswith(LOG_SECTIONS):
        return name in LOGGING
    if path.startswith("hydra."):
        return name in HYDRA
    is_method = re.split(r"[.\[]", path)[0] in FOLDERS and trusted().plugin_of(name) is not None
    return bool(OWN.match(name)) or name in LOGGERS or is_method


def _admitted(name: str, packages: Iterable[str]) -> bool:
    """Whether `name` is in a package that the user trusts; a Hydra plugin may be named without the
    prefix `hydra_plugins`."""
    return any(name.startswith((f"{each}.", f"hydra_plugins.{each}.")) for each in packages)


def _is_package(name: object) -> bool:
    return isinstance(name, str) and bool(_PACKAGE.match(name))


def _check_variable(path: str, name: str, value: object) -> None:
    # `hydra.job.env_copy` copies variables unchanged from the user's shell.
    if _ENVIRONMENT.match(name.upper()) and os.environ.get(name) != value:
        raise ConfigError(
            f"`{path}`: a configuration must not set {name}, which determines the code that"
            " child processes run: set it in the shell instead"
        )
