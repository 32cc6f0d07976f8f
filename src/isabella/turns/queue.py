"""Queues that give each agent one turn at a time, in order of arrival (fact M10).

The first turn in an agent's queue also takes the agent's lock in Letta's Postgres, if that is known, so that
backends take turns too.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

import anyio

from isabella.errors import DatabaseUnusable, LockTimeout, QueueFull, TurnTimeout
from isabella.locks.postgres import AdvisoryLocks, lock_key
from isabella.system.english import english

#: The estimated length of a turn in seconds, until turns have been measured.
_FIRST_ESTIMATE = 3.0
_WEIGHT_OF_LAST = 0.3
_MAX_RETRY_AFTER = 120.0


async def _never() -> bool:
    return False


class TicketAbandoned(Exception):
    """The ticket was given up while it waited."""


class TurnQueue:
    """The queues of all agents: `limit` turns may wait for one agent, `patience` seconds at most."""

    def __init__(
        self,
        advisory: AdvisoryLocks | None = None,
        *,
        limit: int = 8,
        patience: float = 120.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._advisory = advisory
        self._limit = limit
        self._patience = patience
        self._clock = clock
        self._queues: dict[str, deque[Ticket]] = {}
        self._turn_seconds = _FIRST_ESTIMATE

    @property
    def waiting(self) -> int:
        """The number of tickets that wait behind the first of their queue."""
        return sum(len(queue) - 1 for queue in self._queues.values())

    @property
    def in_use(self) -> frozenset[str]:
        """The ids of the agents that have a turn, or whose turns wait."""
        return frozenset(self._queues)

    def take(self, agent_id: str) -> Ticket:
        """Return a ticket at the end of an agent's queue, or raise `QueueFull`. It must be waited for, or left."""
        queue = self._queues.setdefault(agent_id, deque())
        if len(queue) > self._limit:
            wait = min(self._turn_seconds * len(queue), _MAX_RETRY_AFTER)
            raise QueueFull(
                english("%(count)s turns are already waiting for this agent.", count=len(queue) - 1),
                retry_after=max(1.0, round(wait)),
                remedy=english("Try again later; ISABELLA_TURN_QUEUE sets how many turns may wait."),
            )
        ticket = Ticket(self, agent_id, ahead=len(queue))
        queue.append(ticket)
        if queue[0] is ticket:
            ticket.at_head.set()
        return ticket

    def remove(self, ticket: Ticket) -> None:
        """Take a ticket out of its queue, if it is there."""
        queue = self._queues.get(ticket.agent_id, deque())
        if ticket in queue:
            queue.remove(ticket)
            if queue:
                queue[0].at_head.set()
            else:
                del self._queues[ticket.agent_id]

    @asynccontextmanager
    async def hold(self, ticket: Ticket, recovered: Callable[[], Awaitable[bool]]) -> AsyncIterator[None]:
        """Wait for a ticket, and hold the agent's lock; take the ticket out of its queue at the end.

        If the database cannot be used, `recovered` returns whether it can again.
        """
        deadline = self._clock() + self._patience
        async with AsyncExitStack() as held:
            held.callback(self.remove, ticket)
            with anyio.move_on_after(self._patience):
                await ticket.at_head.wait()
            if ticket.given_up:
                raise TicketAbandoned
            if not ticket.at_head.is_set():
                raise self._timed_out()
            key = lock_key("turn", ticket.agent_id)
            while self._advisory is not None:
                left = max(0.001, deadline - self._clock())
                try:
                    await held.enter_async_context(self._advisory.held(key, timeout=left))
                    break
                except LockTimeout:
                    raise self._timed_out() from None
                except DatabaseUnusable:
                    if not await recovered():
                        raise
                    deadline = self._clock() + self._patience
            began = self._clock()
            try:
                yield
            finally:
                self._turn_seconds += _WEIGHT_OF_LAST * (self._clock() - began - self._turn_seconds)

    def _timed_out(self) -> TurnTimeout:
        return TurnTimeout(
            english(
                "Other turns of this agent have been running for %(seconds)s s.", seconds=format(self._patience, "g")
            ),
            remedy=english("Try again later, or stop them."),
        )


class Ticket:
    """A place in an agent's queue: `async with ticket.reached():`, or `ticket.leave()`."""

    def __init__(self, queue: TurnQueue, agent_id: str, *, ahead: int) -> None:
        self._queue = queue
        self.agent_id = agent_id
        self.ahead = ahead  #: how many turns of this process were in the queue before
        self.at_head = anyio.Event()  #: set when the ticket is the first in the queue, or was given up
        self.given_up = False

    def reached(self, recovered: Callable[[], Awaitable[bool]] = _never) -> AbstractAsyncContextManager[None]:
        """Wait until the ticket is the first; then keep others waiting. Raise `TicketAbandoned` or `TurnTimeout`.

        If the database of the locks cannot be used, `recovered` waits, and returns whether to try again.
        """
        return self._queue.hold(self, recovered)

    def give_up(self) -> None:
        """Stop waiting. Has no effect on a ticket that was reached."""
        self.given_up = True
        self.at_head.set()

    def leave(self) -> None:
        """Let the next ticket proceed; may be called more than once."""
        self._queue.remove(self)
