"""Running calls side by side, with plain errors: callers see the first failure itself, not a group around it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

import anyio

Result = TypeVar("Result")


async def gather(calls: Iterable[Callable[[], Awaitable[Result]]], *, at_once: int | None = None) -> list[Result]:
    """Run the calls side by side.

    Args:
        calls: functions without arguments.
        at_once: how many may run at the same time; None for all of them.

    Returns:
        Their results, in the order of the calls.

    Raises:
        Exception: the first that failed; the others are cancelled.
    """
    pending = list(calls)
    results: dict[int, Result] = {}
    errors: list[Exception] = []
    limiter = anyio.CapacityLimiter(at_once or max(1, len(pending)))

    async with anyio.create_task_group() as tasks:

        async def one(index: int, call: Callable[[], Awaitable[Result]]) -> None:
            async with limiter:
                try:
                    results[index] = await call()
                except Exception as error:  # noqa: BLE001 - raised again below, bare
                    errors.append(error)
                    tasks.cancel_scope.cancel()

        for index, call in enumerate(pending):
            tasks.start_soon(one, index, call)
    if errors:
        raise errors[0]
    return [results[index] for index in range(len(pending))]
