"""Creates Lightning loggers by name. Only loggers from a fixed list are imported."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from backdoor_lab.core.atomic_io import room
from backdoor_lab.core.errors import ConfigError, unknown
from backdoor_lab.core.targets import LOGGERS


def check_logger(config: dict[str, Any]) -> None:
    """Raises ConfigError if a `logger` group names a logger that is unknown or not installed."""
    target = config.get("_target_")
    if target is None:
        return
    if target not in LOGGERS:
        raise unknown("`logger._target_`", target, LOGGERS)
    package = LOGGERS[target]
    if importlib.util.find_spec(package) is None:
        raise ConfigError(f"`logger`: {package} is not installed: pip install {package}")


def logger_of(config: dict[str, Any], stage: str, folder: Path) -> Any:
    """Create the Lightning logger of a `logger` group for one training stage; False for ``none``.

    The logger writes to `folder` unless the group sets another folder.
    """
    check_logger(config)
    if config.get("_target_") is None:
        return False
    module, _, name = config["_target_"].rpartition(".")
    arguments = {key: value for key, value in config.items() if key != "_target_"}
    if arguments.get("save_dir", "") is None:
        arguments["save_dir"] = str(folder)
    if "name" in arguments:
        arguments["name"] = f"{arguments['name']}/{stage}"
    made = getattr(importlib.import_module(module), name)(**arguments)
    _watch(made, Path(arguments.get("save_dir") or folder))
    return made


def _watch(logger: Any, folder: Path) -> None:
    """Patch a logger so that its error on a full disk contains the logger's folder. Without the
    patch, the error would be attributed to the running stage."""
    for name in ("log_metrics", "log_hyperparams", "save", "finalize"):
        setattr(logger, name, _watched(getattr(logger, name), folder))


def _watched(method: Callable[..., Any], folder: Path) -> Callable[..., Any]:
    @functools.wraps(method)
    def wrapped(*arguments: Any, **options: Any) -> Any:
        with room(folder / "log"):
            return method(*arguments, **options)

    return wrapped
