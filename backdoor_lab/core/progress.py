"""Progress of long loops: a loop says how far it is, and whoever runs it may show it.

Attacks and defenses wrap their long loops in `track`. Without an observer that does nothing but
check for a stop request; the pipeline observes, and shows the steps on the terminal and in the
cell's heartbeat. Tracking draws no random number and changes no value.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

from backdoor_lab.core import stopping

T = TypeVar("T")


@dataclass(eq=False)
class Step:
    """One loop: what an iteration is called, how many are done, and how many there are."""

    label: str
    total: int | None
    done: int = 0

    def __str__(self) -> str:
        of = "" if self.total is None else f" of {self.total}"
        return f"{self.label} {min(self.done + 1, self.total or self.done + 1)}{of}"


class Steps:
    """The loops that are running now, the outermost first.

    Filled by the thread that works and read by the one that shows: both see whole entries.
    """

    def __init__(self) -> None:
        self.running: list[Step] = []

    def __str__(self) -> str:
        """`class 3 of 10, step 120 of 300`; empty when no loop is running."""
        return ", ".join(map(str, list(self.running)))

    @property
    def fraction(self) -> float | None:
        """The share of the outermost loop that is done; None when nothing is known of it."""
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
    """Inside, every tracked loop of this thread is entered in `steps`."""
    token = _observed.set(steps)
    try:
        yield
    finally:
        _observed.reset(token)


def track(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """The `items`, one after the other, each counted as one `label` of `total`.

    `total` defaults to the length of `items` where they have one. Loops may be nested. Raises
    Stopped when the process was asked to stop.
    """
    steps = _observed.get()
    if total is None and isinstance(items, Sized):
        total = len(items)
    step = Step(label, total)
    if steps is not None:
        steps.running.append(step)
    try:
        for item in items:
            stopping.check()
            yield item
            step.done += 1
    finally:
        # An observer may have dropped what an earlier error left behind.
        if steps is not None and step in steps.running:
            steps.running.remove(step)
