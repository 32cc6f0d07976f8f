"""One turn at a time for each agent, in the order in which they came (fact M10).

Turns of this process stand in a queue of their own for each agent; its head then takes the agent's lock in Letta's
Postgres, where that is known, so that backends take turns too.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import anyio

from isabella.errors import LockTimeout, QueueFull, TurnTimeout
from isabella.locks.postgres import AdvisoryLocks, lock_key

#: What a turn takes, for the first guess at how long a queue is, in seconds.
_USUAL_TURN = 3.0
_WEIGHT_OF_LAST = 0.3
_LONGEST_GUESS = 120.0


class TicketAbandoned(Exception):
    """The place was given up while it was waited for."""


class TurnQueue:
    """The queues of all agents.

    Args:
        advisory: locks that hold across processes; None where no database is known.
        limit: how many may wait for one agent, beside the one that speaks.
        patience: seconds that each waits at most.
        clock: tells the time, in seconds.
    """

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
        self._usual = _USUAL_TURN

    def take(self, agent_id: str) -> Ticket:
        """A place at the end of an agent's queue. It has to be waited for, or left.

        Raises:
            QueueFull: too many wait already.
        """
        queue = self._queues.setdefault(agent_id, deque())
        if len(queue) > self._limit:
            wait = min(self._usual * len(queue), _LONGEST_GUESS)
            raise QueueFull(
                f"{len(queue) - 1} turns wait for this agent already.",
                retry_after=max(1.0, round(wait)),
                remedy="Try again later; ISABELLA_TURN_QUEUE sets how many may wait.",
            )
        ticket = Ticket(self, agent_id, ahead=len(queue))
        queue.append(ticket)
        if queue[0] is ticket:
            ticket.at_head.set()
        return ticket

    def counted(self) -> int:
        """How many turns are under way or wait, over all agents."""
        return sum(map(len, self._queues.values()))

    def _leave(self, ticket: Ticket) -> None:
        queue = self._queues.get(ticket.agent_id)
        if queue is None or ticket not in queue:
            return
        queue.remove(ticket)
        if queue:
            queue[0].at_head.set()
        else:
            del self._queues[ticket.agent_id]

    @asynccontextmanager
    async def _reach(self, ticket: Ticket) -> AsyncIterator[None]:
        deadline = self._clock() + self._patience
        with anyio.move_on_after(self._patience):
            await ticket.at_head.wait()
        if ticket.given_up:
            raise TicketAbandoned
        if not ticket.at_head.is_set():
            raise self._too_long()
        async with AsyncExitStack() as held:
            if self._advisory is not None:
                left = max(0.001, deadline - self._clock())
                try:
                    await held.enter_async_context(self._advisory.held(_key(ticket.agent_id), timeout=left))
                except LockTimeout:
                    raise self._too_long() from None
            began = self._clock()
            try:
                yield
            finally:
                self._usual += _WEIGHT_OF_LAST * (self._clock() - began - self._usual)

    def _too_long(self) -> TurnTimeout:
        return TurnTimeout(
            f"Other turns of this agent have been going on for {self._patience:g} s.",
            remedy="Try again later, or stop them.",
        )


class Ticket:
    """A place in an agent's queue: `async with place.reached():`, or `place.leave()`.

    Attributes:
        agent_id: the agent.
        ahead: how many of this process came before.
        at_head: set when nobody of this process is before it any more, or when it was given up.
        given_up: whether it was.
    """

    def __init__(self, queue: TurnQueue, agent_id: str, *, ahead: int) -> None:
        self._order = queue
        self.agent_id = agent_id
        self.ahead = ahead
        self.at_head = anyio.Event()
        self.given_up = False

    @asynccontextmanager
    async def reached(self) -> AsyncIterator[None]:
        """Wait until it is this one's turn, and have the agent for oneself.

        Raises:
            GivenUp: somebody gave it up meanwhile.
            TurnTimeout: the others took too long.
            ConfigurationError: the database for locks cannot be used.
        """
        try:
            async with self._order._reach(self):
                yield
        finally:
            self.leave()

    def give_up(self) -> None:
        """Wait no longer. Without effect on one that has been reached."""
        self.given_up = True
        self.at_head.set()

    def leave(self) -> None:
        """Make room for the next one. Harmless when it was left already."""
        self._order._leave(self)


def _key(agent_id: str) -> int:
    return lock_key("turn", agent_id)
