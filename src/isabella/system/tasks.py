"""Concurrent calls whose first failure is raised as it is, not within an exception group."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

import anyio

Result = TypeVar("Result")


async def gather(calls: Iterable[Callable[[], Awaitable[Result]]], *, at_once: int | None = None) -> list[Result]:
    """Run calls concurrently, `at_once` at the same time, and return their results in the order of the calls.

    If a call raises an exception, the others are cancelled, and the first exception is raised.
    """
    pending = list(calls)
    results: dict[int, Result] = {}
    errors: list[Exception] = []
    limiter = anyio.CapacityLimiter(at_once or max(1, len(pending)))

    async with anyio.create_task_group() as tasks:

        async def run(index: int, call: Callable[[], Awaitable[Result]]) -> None:
            async with limiter:
                try:
                    results[index] = await call()
                except Exception as error:  # noqa: BLE001 - raised again below, outside the group
                    errors.append(error)
                    tasks.cancel_scope.cancel()

        for index, call in enumerate(pending):
            tasks.start_soon(run, index, call)
    if errors:
        raise errors[0]
    return [results[index] for index in range(len(pending))]
