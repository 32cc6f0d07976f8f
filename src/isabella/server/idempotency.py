"""Turns whose client may send its request again: a repeat joins the turn that the first request has begun.

The official OpenAI client closes the connection when it has waited for long enough, and sends the same request again,
with a header that counts its retries. So a turn goes on by itself for a while after its client has gone; then it is
stopped. A repeat is known by its body, together with the count of retries, or with an `Idempotency-Key`.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass

import anyio
import structlog
from anyio.abc import TaskGroup

from isabella.errors import IsabellaError
from isabella.turns.events import Ended, Event
from isabella.turns.service import TurnService
from isabella.turns.turn import Turn

log = structlog.get_logger()

#: So long a turn goes on without its client. The official client waits at most 8 s.
SECONDS_FOR_REPEAT = 10.0
#: So long it is remembered after that, for a repeat that comes late.
_SECONDS_REMEMBERED = 10.0

_RETRY_COUNT, _IDEMPOTENCY_KEY = "x-stainless-retry-count", "idempotency-key"


@dataclass(frozen=True)
class TurnRequest:
    """A request for a turn, as far as it tells whether it repeats another one.

    Attributes:
        body: fingerprint of its body, which names the agent, too.
        retry: which retry it is; None where its client does not count them.
        key: its `Idempotency-Key`; None where it has none.
    """

    body: bytes
    retry: int | None = None
    key: str | None = None

    @classmethod
    def of(cls, headers: Mapping[str, str], body: bytes) -> TurnRequest:
        """What headers and body say."""
        count = headers.get(_RETRY_COUNT, "")
        return cls(
            hashlib.sha256(body).digest(),
            int(count) if count.isascii() and count.isdigit() and len(count) < 10 else None,
            headers.get(_IDEMPOTENCY_KEY) or None,
        )

    @property
    def may_be_repeated(self) -> bool:
        """Whether its client is one that repeats requests by itself."""
        return self.retry is not None or self.key is not None

    def resembles(self, other: TurnRequest) -> bool:
        """Whether it says the same as an earlier one."""
        return (self.body, self.key) == (other.body, other.key)

    def repeats(self, other: TurnRequest) -> bool:
        """Whether it is an earlier one, sent again."""
        counted = self.retry is not None and other.retry is not None and self.retry > other.retry
        return self.resembles(other) and (self.key is not None or counted)


class SharedTurn:
    """A turn that goes on by itself, and is heard by those who asked for it.

    Args:
        request: the request that began it; the latest that has joined it later.
    """

    def __init__(self, request: TurnRequest) -> None:
        self.request = request
        self.turn: Turn | None = None
        #: Whether a response to one of its requests has begun.
        self.answered = False
        #: How many hear it now.
        self.heard_by = 0
        self.over = anyio.Event()
        self.stopping = False
        self.timer: asyncio.TimerHandle | None = None
        self._events: list[Event] = []
        self._error: Exception | None = None
        self._news = anyio.Event()

    @property
    def came_to_nothing(self) -> bool:
        """Whether it is over, and nothing of it is in the agent's history, so that it may be said again."""
        last = self._events[-1] if self._events else None
        return self.over.is_set() and not (isinstance(last, Ended) and last.stored)

    async def run(self, turn_service: TurnService, agent: str, message: str) -> None:
        """Have the turn, from beginning to end."""
        try:
            self.turn = await turn_service.open(agent, message)
            if self.stopping:
                self.turn.stop()
            async with aclosing(turn_service.events(self.turn)) as events:
                async for event in events:
                    self._events.append(event)
                    self._tell()
        except Exception as error:
            # Whoever hears it is told; the other turns go on.
            self._error = error
            if not isinstance(error, IsabellaError):
                log.exception("turn failed", agent=agent)
        finally:
            self.over.set()
            self._tell()

    def stop(self) -> None:
        """End it; what came is kept."""
        self.stopping = True
        if self.turn is not None:
            self.turn.stop()

    async def events(self) -> AsyncGenerator[Event, None]:
        """All its events from the first one on.

        Raises:
            IsabellaError: the turn could not be begun.
        """
        given = 0
        while True:
            news = self._news
            while given < len(self._events):
                given += 1
                yield self._events[given - 1]
            if self.over.is_set() and given == len(self._events):
                if self._error is not None:
                    raise self._error
                return
            if news is self._news:
                await news.wait()

    def _tell(self) -> None:
        self._news.set()
        self._news = anyio.Event()


class Subscription:
    """One client that hears a turn. It has to `leave`."""

    def __init__(self, repeats: RequestRegistry, shared: SharedTurn) -> None:
        self._repeats: RequestRegistry | None = repeats
        self.shared = shared

    @property
    def turn(self) -> Turn:
        """The turn, once there are events of it."""
        if self.shared.turn is None:
            raise RuntimeError("the turn has not begun")
        return self.shared.turn

    def events(self) -> AsyncGenerator[Event, None]:
        """All events of the turn from the first one on. Raises `IsabellaError` where it could not be begun."""
        return self.shared.events()

    def leave(self) -> None:
        """Hear no more: the response is complete, or the client has gone."""
        repeats, self._repeats = self._repeats, None
        if repeats is not None:
            repeats.left(self.shared)


class RequestRegistry:
    """The turns that may be asked for again.

    Args:
        turn_service: where turns are taken on.
        tasks: where they go on.
    """

    def __init__(self, turn_service: TurnService, tasks: TaskGroup) -> None:
        self._desk = turn_service
        self._tasks = tasks
        self._known: list[SharedTurn] = []

    async def on_event(self, request: TurnRequest, agent: str, message: str) -> Subscription:
        """Hear the turn that this request asks for: the one that it repeats, or a new one.

        A turn that is being stopped has to be over first: only then it is known whether the message was stored.
        """
        while (found := self._find(request)) is not None and found.stopping and not found.over.is_set():
            await found.over.wait()
        if found is None or found.came_to_nothing:
            if found is not None:
                self._forget(found)
            found = SharedTurn(request)
            self._known.append(found)
            self._tasks.start_soon(found.run, self._desk, agent, message)
        found.request = request
        found.heard_by += 1
        self._set_timer(found)
        return Subscription(self, found)

    def left(self, shared: SharedTurn) -> None:
        """Somebody hears a turn no more."""
        shared.heard_by -= 1
        if shared.heard_by > 0:
            return
        again = shared.request.key is not None or (shared.request.may_be_repeated and not shared.answered)
        if shared.answered or not again:
            shared.stop()
        if again:
            self._set_timer(shared, SECONDS_FOR_REPEAT, self._expire)
        else:
            self._forget(shared)

    def _find(self, request: TurnRequest) -> SharedTurn | None:
        for shared in self._known[::-1]:
            # Who has got an answer repeats nothing, unless an answer that was lost on the way: only a key tells that.
            if request.repeats(shared.request) and (request.key is not None or not shared.answered):
                return shared
            if request.resembles(shared.request) and shared.heard_by == 0:
                # The client asks anew in place of repeating: nobody comes back for that one.
                shared.stop()
                self._forget(shared)
        return None

    def _set_timer(
        self, shared: SharedTurn, seconds: float = 0.0, then: Callable[[SharedTurn], None] | None = None
    ) -> None:
        if shared.timer is not None:
            shared.timer.cancel()
        shared.timer = None
        if then is not None:
            shared.timer = asyncio.get_running_loop().call_later(seconds, then, shared)

    def _expire(self, shared: SharedTurn) -> None:
        if not shared.over.is_set():
            shared.stop()
        self._set_timer(shared, _SECONDS_REMEMBERED, self._drop)

    def _drop(self, shared: SharedTurn) -> None:
        if shared.over.is_set():
            self._forget(shared)
        else:
            # Before its end nobody knows whether a late repeat may say the message again.
            self._set_timer(shared, _SECONDS_REMEMBERED, self._drop)

    def _forget(self, shared: SharedTurn) -> None:
        self._set_timer(shared)
        if shared in self._known:
            self._known.remove(shared)
