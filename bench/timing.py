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


async def medians(rounds: int, *ways: Way) -> list[float]:
    """Return the median seconds of each way. The ways alternate in rotating order, after one untimed round."""
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
    return [statistics.median(each) for each in seconds]


def in_ms(names: Sequence[str], seconds: Sequence[float]) -> str:
    """Return medians as text: `ours 21 ms, loop 850 ms`."""
    return ", ".join(f"{name} {value * 1000:.0f} ms" for name, value in zip(names, seconds, strict=True))
