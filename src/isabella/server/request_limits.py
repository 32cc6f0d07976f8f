"""Limits of admitted requests: the size, time and memory of their bodies, and the event streams of a session."""

from __future__ import annotations

import ctypes
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field

import anyio
import anyio.lowlevel
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from isabella.server.auth import session_in
from isabella.server.errors import Problem, answer
from isabella.server.sessions import Sessions

_KIB = 1024


@dataclass(frozen=True)
class BodyLimits:
    """The limits of request bodies.

    Attributes:
        largest: the size in bytes. Agent files may be large.
        small: the size up to which bodies are read beside each other; larger ones wait for each other.
        most_small: how many small ones are read at once.
        seconds: the time for a body, waiting included.
    """

    largest: int = 64 * _KIB * _KIB
    small: int = 256 * _KIB
    most_small: int = 64
    seconds: float = 60.0


@dataclass(frozen=True)
class StreamLimits:
    """The limits of concurrent event streams, for a browser session and for the token."""

    session: int = 32
    token: int = 256


class RequestLimits:
    """An ASGI middleware that enforces the limits. It buffers nothing.

    Args:
        app: the application.
        sessions: ends the streams of a session that ends.
        bodies: the limits of bodies.
        streams: the limits of event streams.
    """

    def __init__(
        self,
        app: ASGIApp,
        sessions: Sessions,
        bodies: BodyLimits | None = None,
        streams: StreamLimits | None = None,
    ) -> None:
        self._app = app
        self._memory = _BodyMemory(bodies or BodyLimits())
        self._limits = streams or StreamLimits()
        self._streams: defaultdict[str | None, set[anyio.CancelScope]] = defaultdict(set)
        sessions.on_end = self._end_streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        session = session_in(scope)
        key = None if session is None else session.id
        body = _Body(self._memory, scope, receive)
        exchange = _Exchange(self, key, send)
        try:
            with exchange.cancel:
                await self._app(scope, body.receive, exchange.send)
        finally:
            body.release()
            self._streams[key].discard(exchange.cancel)
            if not self._streams[key]:
                del self._streams[key]
        await exchange.close(scope, receive)

    def add_stream(self, key: str | None, cancel: anyio.CancelScope) -> bool:
        """Count an event stream; return whether the session may have one more."""
        streams = self._streams[key]
        if len(streams) >= (self._limits.token if key is None else self._limits.session):
            return False
        streams.add(cancel)
        return True

    def _end_streams(self, id: str) -> None:
        for cancel in tuple(self._streams.get(id, ())):
            cancel.cancel()


class _Exchange:
    """A response on its way. A stream too many is refused before it begins; one whose session ends is completed."""

    def __init__(self, limits: RequestLimits, key: str | None, send: Send) -> None:
        self.cancel = anyio.CancelScope()
        self._limits = limits
        self._key = key
        self._send = send
        self._state = "new"

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            kind = Headers(raw=message["headers"]).get("content-type", "")
            if kind.startswith("text/event-stream") and not self._limits.add_stream(self._key, self.cancel):
                self._state = "refused"
                self.cancel.cancel()
                # Raises the cancellation.
                await anyio.lowlevel.checkpoint()
            self._state = "begun"
        elif not message.get("more_body", False):
            self._state = "complete"
        await self._send(message)

    async def close(self, scope: Scope, receive: Receive) -> None:
        if self._state == "refused":
            await _too_many_streams()(scope, receive, self._send)
        elif self._state == "begun" and self.cancel.cancelled_caught:
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})


class _BodyMemory:
    """The memory that request bodies share."""

    def __init__(self, limits: BodyLimits) -> None:
        self.limits = limits
        self.large = anyio.Semaphore(1)
        self.small = anyio.Semaphore(limits.most_small)


@dataclass
class _Body:
    """The body of a request; `receive` raises `HTTPException` beyond a limit."""

    memory: _BodyMemory
    scope: Scope
    channel: Receive
    _received: int = 0
    _deadline: float | None = None
    _complete: bool = False
    _held: list[anyio.Semaphore] = field(default_factory=list)

    def __post_init__(self) -> None:
        headers = Headers(scope=self.scope)
        length = headers.get("content-length", "0")
        self._announced = int(length) if length.isdecimal() else 0
        self._complete = self._announced == 0 and "transfer-encoding" not in headers

    async def receive(self) -> Message:
        if self._complete:
            return await self.channel()
        limits = self.memory.limits
        if self._announced > limits.largest:
            raise _too_large(limits)
        if self._deadline is None:
            self._deadline = anyio.current_time() + limits.seconds
        large = self._announced > limits.small or self._received > limits.small
        message = None
        with anyio.move_on_at(self._deadline):
            await self._hold(self.memory.large if large else self.memory.small)
            message = await self.channel()
        if message is None:
            busy = not self._held or (large and self.memory.large not in self._held)
            raise HTTPException(503 if busy else 408, _BUSY if busy else _LATE, {"Retry-After": "10"})
        self._received += len(message.get("body", b""))
        self._complete = message["type"] != "http.request" or not message.get("more_body", False)
        if self._received > limits.largest:
            raise _too_large(limits)
        if self._complete and self._held == [self.memory.small]:
            self.release()
        return message

    async def _hold(self, semaphore: anyio.Semaphore) -> None:
        if semaphore not in self._held:
            await semaphore.acquire()
            self._held.append(semaphore)

    def release(self) -> None:
        if self.memory.large in self._held:
            _return_memory()
        while self._held:
            self._held.pop().release()


_BUSY = "Other large requests are being read."
_LATE = "The request body did not come in time."


def _return_memory() -> None:
    """Return freed memory to the system. The C library of Linux keeps what lies below a block that is in use."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def _too_large(limits: BodyLimits) -> HTTPException:
    return HTTPException(413, f"The request body is larger than {limits.largest} bytes.")


def _too_many_streams() -> ASGIApp:
    problem = Problem(
        code="too_many_streams",
        message="This session has too many event streams open.",
        remedy="Close pages or turns that nobody reads.",
    )
    return answer(429, problem, {"Retry-After": "10"})
