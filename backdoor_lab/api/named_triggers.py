"""Creates triggers by name."""

from __future__ import annotations

from typing import Any

from backdoor_lab.api.boundary import boundary
from backdoor_lab.api.methods import defaults, plain
from backdoor_lab.api.triggers import Trigger
from backdoor_lab.attacks import base
from backdoor_lab.core.instantiate import NOT_ARGUMENTS, build


def get_trigger(name: str, /, **options: Any) -> Trigger:
    """Returns a trigger by name.

    Args:
        name: One of ``list_methods("triggers")``. Papers and options:
            ``backdoor_lab/attacks/README.md`` and ``conf/trigger``.
        **options: Values that replace the defaults in ``conf/trigger/<name>.yaml``.

    Raises:
        ValueError: The name or an option is unknown, or the trigger rejects a value.

    Example:
        >>> import backdoor_lab as bl, numpy as np
        >>> trigger = bl.get_trigger("pixel", color=200)
        >>> int(trigger(np.zeros((3, 8, 8), np.uint8)).max())
        200
    """
    with boundary():
        for key in NOT_ARGUMENTS:
            if key in options:
                raise ValueError(f"option `{key}` is not known")
        config = defaults("triggers", name) | plain(options)
        method = build("trigger", config, base.Trigger)  # type: ignore[type-abstract]
        return Trigger(name, method, {k: v for k, v in config.items() if k not in NOT_ARGUMENTS})
