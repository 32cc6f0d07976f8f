"""Calls side by side: results in order, a bound on how many run, and the first failure itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import anyio
import pytest

from isabella.system.tasks import gather


def test_results_come_in_the_order_of_the_calls() -> None:
    """Whichever call ends first, its result stands in its own place."""

    async def scenario() -> list[int]:
        last_is_done = anyio.Event()

        async def first() -> int:
            await last_is_done.wait()
            return 1

        async def last() -> int:
            last_is_done.set()
            return 2

        return await gather([first, last])

    assert anyio.run(scenario) == [1, 2]


def test_no_calls_give_no_results() -> None:
    """An empty list of calls is no mistake."""
    nothing: list[Callable[[], Awaitable[int]]] = []
    assert anyio.run(gather, nothing) == []


@pytest.mark.parametrize("at_once", [1, 3])
def test_no_more_run_at_once_than_allowed(at_once: int) -> None:
    """The bound is kept, and used to the full."""
    running, most = 0, 0

    async def call(number: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(3):
            await anyio.lowlevel.checkpoint()
        running -= 1
        return number

    async def scenario() -> list[int]:
        return await gather([partial(call, number) for number in range(10)], at_once=at_once)

    assert anyio.run(scenario) == list(range(10))
    assert most == at_once


def test_the_first_failure_comes_out_bare_and_ends_the_others() -> None:
    """Callers see the error itself, not a group around it, and what still ran is cancelled."""
    cancelled = False

    async def fails() -> int:
        raise LookupError("the first")

    async def waits() -> int:
        nonlocal cancelled
        try:
            await anyio.sleep_forever()
        finally:
            cancelled = True
        return 0

    async def scenario() -> None:
        await gather([waits, fails])

    with pytest.raises(LookupError, match="the first"):
        anyio.run(scenario)
    assert cancelled
