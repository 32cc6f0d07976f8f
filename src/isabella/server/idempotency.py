"""Repeated requests: a request that repeats another one joins its turn, so that the message is sent only once.

The official OpenAI client closes the connection at its timeout and sends the same request again, with a header that
counts the retries. A turn therefore continues for a while after its client has gone, and is then stopped. A repeat
has the same body, and either a higher retry count or the same `Idempotency-Key`.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace

import anyio
import structlog
from anyio.abc import TaskGroup

from isabella.errors import IsabellaError
from isabella.turns.events import Ended, Event
from isabella.turns.message import UserMessage
from isabella.turns.service import TurnService
from isabella.turns.turn import Turn

log = structlog.get_logger()

#: How long a turn continues without a client. The official client waits at most 8 s before a retry.
SECONDS_FOR_REPEAT = 10.0
#: How long it is remembered after that, for late repeats.
_SECONDS_REMEMBERED = 10.0

_REQUESTS = uuid.UUID("6f1c6b0e-6b6c-5a52-9d3a-15abe11a0001")
_RETRY_COUNT, _IDEMPOTENCY_KEY = "x-stainless-retry-count", "idempotency-key"


@dataclass(frozen=True)
class TurnRequest:
    """The parts of a request that tell whether it repeats another one."""

    body: bytes  #: a hash of the body, which includes the agent's name
    retry: int | None = None  #: the retry count; None if the client does not count retries
    key: str | None = None  #: the `Idempotency-Key`, if any

    @classmethod
    def of(cls, headers: Mapping[str, str], body: bytes) -> TurnRequest:
        """Return the turn request of an HTTP request."""
        count = headers.get(_RETRY_COUNT, "")
        return cls(
            hashlib.sha256(body).digest(),
            int(count) if count.isascii() and count.isdigit() and len(count) < 10 else None,
            headers.get(_IDEMPOTENCY_KEY) or None,
        )

    @property
    def id(self) -> str | None:
        """The same value in every repeat, at every backend; None without a key, which alone proves a repeat."""
        return None if self.key is None else str(uuid.uuid5(_REQUESTS, f"{self.key}\0{self.body.hex()}"))

    def resembles(self, other: TurnRequest) -> bool:
        """Return whether it has the body and key of an earlier request."""
        return (self.body, self.key) == (other.body, other.key)

    def repeats(self, other: TurnRequest) -> bool:
        """Return whether it is a repeat of an earlier request."""
        later = self.retry is not None and other.retry is not None and self.retry > other.retry
        return self.resembles(other) and (self.key is not None or later)


class SharedTurn:
    """A turn that runs in the background, with its events for any number of subscribers; each must `leave` once."""

    def __init__(self, request: TurnRequest, left: Callable[[SharedTurn], None]) -> None:
        self._left = left
        self.request = request  #: the request that began it, or the latest repeat
        self._turn: Turn | None = None
        self.answered = False  #: whether a response to one of its requests has begun
        self.subscribers = 0  #: the number of clients that read its events
        self.finished = anyio.Event()
        self.stopping = False
        self.waiting = anyio.CancelScope()  #: the wait for a repeat, without subscribers
        self._events: list[Event] = []
        self._error: Exception | None = None
        self._changed = anyio.Event()

    @property
    def turn(self) -> Turn:
        """The turn; available as soon as it has events."""
        if self._turn is None:
            raise RuntimeError("the turn has not begun")
        return self._turn

    @property
    def stored_nothing(self) -> bool:
        """Whether it has ended without a trace in the agent's history, so that the message may be sent again."""
        last = self._events[-1] if self._events else None
        return self.finished.is_set() and not (isinstance(last, Ended) and last.stored is not False)

    async def run(
        self, turn_service: TurnService, agent: str, message: str | UserMessage, conversation: str | None = None
    ) -> None:
        """Run the turn to its end."""
        try:
            turn = self._turn = await turn_service.open(agent, message, conversation)
            if self.stopping:
                turn.stop()
            async with aclosing(turn.events()) as events:
                async for event in events:
                    self._events.append(event)
                    self._notify()
        except Exception as error:
            # Raised in each subscriber; the other turns continue.
            self._error = error
            if not isinstance(error, IsabellaError):
                log.exception("turn failed", agent=agent)
        finally:
            self.finished.set()
            self._notify()

    def leave(self) -> None:
        """End a subscription: the response is complete, or the client has disconnected."""
        self._left(self)

    def stop(self) -> None:
        """Stop the turn; the answer so far is kept."""
        self.stopping = True
        if self._turn is not None:
            self._turn.stop()

    async def events(self) -> AsyncGenerator[Event, None]:
        """Yield all events of the turn from the first one on; raise `IsabellaError` if it could not be opened."""
        index = 0
        while True:
            changed = self._changed
            while index < len(self._events):
                index += 1
                yield self._events[index - 1]
            if self.finished.is_set() and index == len(self._events):
                if self._error is not None:
                    raise self._error
                return
            if changed is self._changed:
                await changed.wait()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()


class RequestRegistry:
    """The turns whose requests may be repeated, each running in `tasks`."""

    def __init__(self, turn_service: TurnService, tasks: TaskGroup) -> None:
        self._turn_service = turn_service
        self._tasks = tasks
        self._turns: list[SharedTurn] = []

    async def join(
        self, request: TurnRequest, agent: str, message: str | UserMessage, conversation: str | None = None
    ) -> SharedTurn:
        """Subscribe to the turn that the request repeats, or to a new one.

        If that turn is being stopped, wait for its end: only then is it known whether the message was stored.
        """
        while (shared := self._find(request)) is not None and shared.stopping and not shared.finished.is_set():
            await shared.finished.wait()
        if shared is None or shared.stored_nothing:
            if shared is not None:
                self._forget(shared)
            shared = SharedTurn(request, self._unsubscribe)
            self._turns.append(shared)
            message = replace(UserMessage.of(message), request_id=request.id)
            self._tasks.start_soon(shared.run, self._turn_service, agent, message, conversation)
        shared.request = request
        shared.subscribers += 1
        shared.waiting.cancel()
        return shared

    def _unsubscribe(self, shared: SharedTurn) -> None:
        """Count a subscriber less. Without subscribers, stop the turn, or wait a while for a repeat."""
        shared.subscribers -= 1
        if shared.subscribers > 0:
            return
        request = shared.request
        wait = request.key is not None or (request.retry is not None and not shared.answered)
        if shared.answered or not wait:
            shared.stop()
        if wait:
            shared.waiting = anyio.CancelScope()
            self._tasks.start_soon(self._await_repeat, shared, shared.waiting)
        else:
            self._forget(shared)

    def _find(self, request: TurnRequest) -> SharedTurn | None:
        for shared in self._turns[::-1]:
            # A client that has its answer sends no repeat, unless the answer was lost. Only a key proves that.
            if request.repeats(shared.request) and (request.key is not None or not shared.answered):
                return shared
            if request.resembles(shared.request) and shared.subscribers == 0:
                # A new request with the same content: the client will not repeat the earlier one.
                shared.stop()
                self._forget(shared)
        return None

    async def _await_repeat(self, shared: SharedTurn, scope: anyio.CancelScope) -> None:
        with scope:
            await anyio.sleep(SECONDS_FOR_REPEAT)
            if not shared.finished.is_set():
                shared.stop()
            await anyio.sleep(_SECONDS_REMEMBERED)
            # Before its end, it is unknown whether a late repeat may send the message again.
            await shared.finished.wait()
            self._forget(shared)

    def _forget(self, shared: SharedTurn) -> None:
        shared.waiting.cancel()
        if shared in self._turns:
            self._turns.remove(shared)
