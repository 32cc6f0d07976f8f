"""Measuring two ways of doing a thing so that a drift of the machine cancels out."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

Step = Callable[[], Awaitable[object]]


async def nothing() -> None:
    """No preparation."""


@dataclass(frozen=True)
class Way:
    """One way of doing something.

    Attributes:
        run: what is timed.
        before: what is done first, untimed.
    """

    run: Step
    before: Step = nothing


async def medians(rounds: int, *ways: Way) -> list[float]:
    """The median seconds of each way. They take turns, in an order that turns round, after one untimed round."""
    seconds: list[list[float]] = [[] for _ in ways]
    order = list(range(len(ways)))
    for number in range(rounds + 1):
        for index in order:
            await ways[index].before()
            # What the ways before it have left behind is not this one's to clear away; its own still is.
            gc.collect()
            began = time.perf_counter()
            await ways[index].run()
            if number:
                seconds[index].append(time.perf_counter() - began)
        order.reverse()
    return [statistics.median(each) for each in seconds]


def in_ms(names: Sequence[str], seconds: Sequence[float]) -> str:
    """Medians for people: `ours 21 ms, loop 850 ms`."""
    return ", ".join(f"{name} {value * 1000:.0f} ms" for name, value in zip(names, seconds, strict=True))
