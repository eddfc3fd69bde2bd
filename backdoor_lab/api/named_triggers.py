"""Creates triggers by name, and from objects of the user's own classes."""

from __future__ import annotations

import inspect
from typing import Any

from backdoor_lab.api.boundary import boundary
from backdoor_lab.api.methods import defaults, plain
from backdoor_lab.api.triggers import Trigger
from backdoor_lab.attacks import base
from backdoor_lab.core.instantiate import NOT_ARGUMENTS, build
from backdoor_lab.plugins.methods import is_plain


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


def as_trigger(trigger: object) -> Trigger:
    """Returns a trigger, given it, its name, or an object of a subclass of `attacks.base.Trigger`.
    Raises TypeError for other types. Internal.

    The name of such an object is that of its class. Its options are the parameters of the
    constructor that are attributes of the same name and have plain values.
    """
    if isinstance(trigger, str):
        return get_trigger(trigger)
    if isinstance(trigger, base.Trigger):
        names = [n for n in inspect.signature(type(trigger)).parameters if n not in NOT_ARGUMENTS]
        values = plain({name: getattr(trigger, name, trigger) for name in names})
        options = {name: value for name, value in values.items() if is_plain(value)}
        return Trigger(type(trigger).__name__, trigger, options)
    if not isinstance(trigger, Trigger):
        said = type(trigger).__name__
        if isinstance(trigger, type):
            said = f"the class {trigger.__name__}"
        raise TypeError(
            "`trigger` must be a name, a trigger from get_trigger, or an object of a class derived"
            f" from backdoor_lab.attacks.base.Trigger, got {said}"
        )
    return trigger
