"""Interleaved timing of several ways, so that drift of the machine cancels out."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

Step = Callable[[], Awaitable[object]]


async def nothing() -> None:
    """Do nothing."""


@dataclass(frozen=True)
class Way:
    """One way to do something.

    Attributes:
        run: what is timed.
        before: what is done first, untimed.
    """

    run: Step
    before: Step = nothing


async def alternate(rounds: int, *ways: Way) -> list[list[float]]:
    """Return the seconds of each way in each round. The order rotates; one untimed round comes first."""
    seconds: list[list[float]] = [[] for _ in ways]
    order = list(range(len(ways)))
    for number in range(rounds + 1):
        for index in order:
            await ways[index].before()
            # Garbage of the previous ways is collected before the timer starts; a way's own garbage counts.
            gc.collect()
            began = time.perf_counter()
            await ways[index].run()
            if number:
                seconds[index].append(time.perf_counter() - began)
        order.reverse()
    return seconds


def medians(**ways: Sequence[float]) -> str:
    """Return the medians of seconds as text: `ours 21 ms, by hand 14.7 s`. Underscores in names become spaces."""
    return ", ".join(f"{name.replace('_', ' ')} {duration(statistics.median(ways[name]))}" for name in ways)


def duration(seconds: float) -> str:
    """Return seconds as text, below two of them as milliseconds."""
    return f"{seconds:.1f} s" if seconds >= 2 else f"{seconds * 1000:.0f} ms"
