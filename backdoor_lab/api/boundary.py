"""What every public function does at its boundary: it computes with torch's default settings, and
turns configuration errors into `ValueError`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import rich.style  # noqa: F401  (draws from Python's generator when it is imported)
import torch

from backdoor_lab.core.errors import ConfigError, DataError, DivergedError

_REPLACED = (
    (re.compile(r"\b(?:raise|set) protocol\.clean_holdout\b"), "pass more images in `clean`"),
    (re.compile(r"\b(?:trigger|defense|protocol|recipe|scan)\.(?=[a-z_]+)"), ""),
    (re.compile(r"\b(?:trigger|defense)=(?=[a-z_]+)"), ""),
)
"""Patterns of configuration keys in messages, and the text that replaces them in the errors of
public functions."""


@contextmanager
def boundary() -> Iterator[None]:
    """Context manager for the body of a public function. Inside, gradients are on, autocast and
    inference mode are off, and new tensors are float32 on the CPU by default, as on the command
    line. Raises `ValueError` instead of ConfigError, DataError and DivergedError. Names such as
    ``trigger.steps`` in messages become ``steps``."""
    default = torch.get_default_dtype()
    try:
        if default != torch.float32:
            torch.set_default_dtype(torch.float32)
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            if torch.get_default_device().type != "cpu":
                stack.enter_context(torch.device("cpu"))
            for device in ("cpu", "cuda"):
                if torch.is_autocast_enabled(device):
                    stack.enter_context(torch.autocast(device, enabled=False))
            yield
    except (ConfigError, DataError, DivergedError) as error:
        raise ValueError(_reworded(str(error))) from error
    finally:
        if default != torch.float32:
            torch.set_default_dtype(default)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Context manager for methods that train or run the user's modules, which may draw from torch's
    global generators, as dropout does. Seeds these generators, and restores their state
    afterwards. Other threads must not draw from them in the meantime."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def _reworded(message: str) -> str:
    for pattern, by in _REPLACED:
        message = pattern.sub(by, message)
    return message
