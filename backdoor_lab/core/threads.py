"""How long threads of numerical libraries stay awake between two pieces of work."""

from __future__ import annotations

import os

WAITING = {
    # torch's (libgomp): some microseconds. By default it is milliseconds, through which they hold
    # a core that another library or process could use; without any (OMP_WAIT_POLICY=PASSIVE) every
    # small operation pays for their waking.
    "GOMP_SPINCOUNT": "10000",
    # NumPy's (OpenBLAS): 2 to the power of it in clock cycles, instead of 26.
    "OPENBLAS_THREAD_TIMEOUT": "16",
}


def wait_briefly() -> None:
    """Sets WAITING in the environment unless it is set there; before torch and NumPy start."""
    for name, value in WAITING.items():
        os.environ.setdefault(name, value)
