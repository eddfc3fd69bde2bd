"""What every public function does at its boundary: it leaves the global random state unchanged and
turns configuration errors into `ValueError`."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from backdoor_lab.core.errors import ConfigError, DataError, DivergedError

_REPLACED = (
    (re.compile(r"\b(?:raise|set) protocol\.clean_holdout\b"), "pass more images in `clean`"),
    (re.compile(r"\b(?:trigger|defense|protocol|recipe)\.(?=[a-z_]+)"), ""),
    (re.compile(r"\b(?:trigger|defense)=(?=[a-z_]+)"), ""),
)
"""Keys of the configuration in messages, and what the user of a function is told instead."""


@contextmanager
def boundary() -> Iterator[None]:
    """Context manager for the body of a public function. Restores the global random states of
    Python, NumPy and torch, and raises `ValueError` instead of ConfigError, DataError and
    DivergedError. Names such as ``trigger.steps`` in messages become ``steps``."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    except (ConfigError, DataError, DivergedError) as error:
        raise ValueError(_reworded(str(error))) from error
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _reworded(message: str) -> str:
    for pattern, by in _REPLACED:
        message = pattern.sub(by, message)
    return message
