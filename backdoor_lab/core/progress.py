"""Progress of long loops, for display by the caller.

Attacks and defenses wrap their long loops in `track`. Without an observer, `track` only checks for
a stop request. The pipeline observes the loops and shows them on the terminal and in the cell's
heartbeat. Tracking draws no random numbers and changes no values.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

from backdoor_lab.core import shutdown

T = TypeVar("T")


@dataclass(eq=False)
class Step:
    """The state of one loop: what an iteration is called, how many iterations are done, and their
    total if known."""

    label: str
    total: int | None
    done: int = 0

    def __str__(self) -> str:
        of = "" if self.total is None else f" of {self.total}"
        return f"{self.label} {min(self.done + 1, self.total or self.done + 1)}{of}"


class Steps:
    """The running loops, outermost first.

    The worker thread changes the list and a display thread reads it; each change is atomic.
    """

    def __init__(self) -> None:
        self.running: list[Step] = []

    def __str__(self) -> str:
        """The state as text: `class 3 of 10, step 120 of 300`; empty if no loop is running."""
        return ", ".join(map(str, list(self.running)))

    @property
    def fraction(self) -> float | None:
        """The completed fraction of the outermost loop; None if its total is unknown."""
        found, weight = 0.0, 1.0
        running = list(self.running)
        for step in running:
            if not step.total:
                break
            found += weight * step.done / step.total
            weight /= step.total
        known = bool(running) and bool(running[0].total)
        return min(1.0, found) if known else None


_observed: ContextVar[Steps | None] = ContextVar("observed", default=None)


@contextmanager
def observe(steps: Steps) -> Iterator[None]:
    """Context manager that records the tracked loops of this thread in `steps`."""
    token = _observed.set(steps)
    try:
        yield
    finally:
        _observed.reset(token)


def track(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Yields the `items` and counts them for the progress display. `label` names one item, e.g.
    ``epoch``.

    `total`: the number of items, by default ``len(items)`` if `items` has a length, otherwise
    unknown. Loops may be nested. Raises StoppedError if the process has been asked to stop.
    """
    steps = _observed.get()
    if total is None and isinstance(items, Sized):
        total = len(items)
    step = Step(label, total)
    if steps is not None:
        steps.running.append(step)
    try:
        for item in items:
            shutdown.check()
            yield item
            step.done += 1
    finally:
        # The observer may already have removed the steps left by an earlier error.
        if steps is not None and step in steps.running:
            steps.running.remove(step)
