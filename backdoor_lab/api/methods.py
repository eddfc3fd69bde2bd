"""Lists the methods by name, and reads the defaults in their configuration files."""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from omegaconf import OmegaConf

from backdoor_lab.attacks.base import Trigger
from backdoor_lab.config_loader import conf_dir
from backdoor_lab.core.errors import ConfigError, unknown
from backdoor_lab.defenses.base import SampleFilter
from backdoor_lab.defenses.networks import ModelRepair

Kind = Literal["triggers", "filters", "repairs", "protocols"]
GROUPS = {
    "triggers": "trigger", "filters": "defense", "repairs": "defense", "protocols": "protocol",
}  # fmt: skip
CLASSES = {"triggers": Trigger, "filters": SampleFilter, "repairs": ModelRepair}
_BY_SOURCE = re.compile(r"\$\{by_source:(\w+)\}")


def list_methods(kind: Kind) -> list[str]:
    """Returns the names of all methods of one kind, sorted.

    Args:
        kind: ``"triggers"``, ``"filters"``, ``"repairs"`` or ``"protocols"``.

    Raises:
        ValueError: `kind` is none of these.

    Example:
        >>> import backdoor_lab as bl
        >>> bl.list_methods("repairs")[:3]
        ['abl_unlearning', 'abl_unlearning_authors', 'anp']
    """
    if kind not in get_args(Kind):
        raise ValueError(str(unknown("`kind`", kind, get_args(Kind))))
    return list(_files(kind))


@functools.cache
def _files(kind: str) -> dict[str, Path]:
    found = {path.stem: path for path in Path(conf_dir()).glob(f"{GROUPS[kind]}/*.yaml")}
    return {name: path for name, path in sorted(found.items()) if _is(kind, path)}


def _is(kind: str, path: Path) -> bool:
    if kind not in CLASSES:
        return True
    config: Any = OmegaConf.load(path)
    module, _, name = str(config["_target_"]).rpartition(".")
    return issubclass(getattr(importlib.import_module(module), name), CLASSES[kind])


def defaults(kind: Kind, name: object, *, source: bool = False) -> dict[str, Any]:
    """Returns the content of the configuration file of a method or protocol. `source`: whether the
    attack has a source class, on which some keys of a protocol depend. Raises ConfigError for an
    unknown name."""
    files = _files(kind)
    if kind in CLASSES and isinstance(name, (CLASSES[kind], type)):
        said = name.__name__ if isinstance(name, type) else type(name).__name__
        raise ConfigError(
            f"a {kind[:-1]} name is needed here, got {said}: a class of your own has no name in"
            " Python and is called directly, see backdoor_lab/plugins/README.md"
        )
    if not isinstance(name, str) or name not in files:
        raise unknown(f"{kind[:-1]} name", name, files)
    found = OmegaConf.to_container(OmegaConf.load(files[name]), resolve=False)
    assert isinstance(found, dict)
    return {str(key): _resolved(value, source) for key, value in found.items()}


def plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns options with NumPy's scalars replaced by numbers of Python."""
    return {k: v.item() if isinstance(v, np.generic) else v for k, v in options.items()}


def _resolved(value: Any, source: bool) -> Any:
    found = _BY_SOURCE.fullmatch(value) if isinstance(value, str) else None
    return value if found is None else "source" if source else found[1]
