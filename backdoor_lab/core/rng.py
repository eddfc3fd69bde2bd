"""Derives one seed per purpose from the cell's seed, and makes generators from such seeds.

Random numbers do not depend on the process, hash randomization, threads or the order of calls.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch

    from backdoor_lab.core.streams import Stream


def derive(seed: int, *purpose: Stream | int) -> int:
    """Returns a 63-bit seed for a named purpose: ``derive(0, streams.ORDER, epoch)``."""
    text = "/".join([str(seed), *map(str, purpose)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def numpy_generator(seed: int, *purpose: Stream | int) -> np.random.Generator:
    """Returns a NumPy generator for a named purpose."""
    import numpy as np

    return np.random.default_rng(derive(seed, *purpose))


def torch_generator(seed: int, *purpose: Stream | int) -> torch.Generator:
    """Returns a torch generator on the CPU for a named purpose."""
    import torch

    return torch.Generator().manual_seed(derive(seed, *purpose))
