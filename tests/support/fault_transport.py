"""Bad weather on the way to a Letta: a transport that fails at a given request, and a clock that does not wait.

Where a real connection matters, `proxy.py` does the same on a socket.
"""

from __future__ import annotations

import asyncio
import json
import selectors
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import httpx2

#: What goes wrong: an HTTP status, or one of these. `kill` ends the process that asks.
Kind = Literal["drop", "hang", "truncate", "html", "refuse", "kill"] | int
When = Literal["before", "after"]


class Killed(BaseException):
    """The process that asks has been killed: nothing of it goes on."""


@dataclass(frozen=True)
class Sent:
    """A request that was made.

    Attributes:
        method: the HTTP method.
        path: the path, without the query.
        body: what it carried, decoded.
        status: what Letta answered; None where it did not get the request, or nobody knows.
    """

    method: str
    path: str
    body: Any
    status: int | None

    @property
    def writes(self) -> bool:
        """Whether it is no reading."""
        return self.method not in ("GET", "HEAD")


class FaultTransport(httpx2.AsyncBaseTransport):
    """A transport before another one.

    Args:
        inner: where requests go in fair weather.
        faults: what befalls the first, second, third … request: before Letta has it, or when it was carried out.
        seen: told of each request, once Letta has answered it or it was lost.
    """

    def __init__(
        self,
        inner: httpx2.AsyncBaseTransport,
        faults: Mapping[int, tuple[Kind, When]] | None = None,
        seen: Callable[[Sent], None] = lambda sent: None,
    ) -> None:
        self._inner = inner
        self._faults = dict(faults or {})
        self._seen = seen
        self._number = 0
        self.dead = False
        self.sent: list[Sent] = []

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Pass a request on, or let it go wrong."""
        if self.dead:
            raise Killed
        self._number += 1
        kind, when = self._faults.get(self._number, (None, "before"))
        response = None
        body = json.loads(request.content) if request.content else None
        if kind is None or when == "after":
            response = await self._inner.handle_async_request(request)
            await response.aread()
        if self.dead:
            # Killed while it was under way: Letta has it all the same.
            kind = "kill"
        sent = Sent(request.method, request.url.path, body, None if response is None else response.status_code)
        self.sent.append(sent)
        self._seen(sent)
        return self._spoilt(kind, request, response)

    def _spoilt(
        self, kind: Kind | None, request: httpx2.Request, response: httpx2.Response | None
    ) -> httpx2.Response:
        match kind:
            case None:
                assert response is not None
                return response
            case "kill":
                self.dead = True
                raise Killed
            case "drop":
                raise httpx2.RemoteProtocolError("the connection was closed", request=request)
            case "refuse":
                raise httpx2.ConnectError("nobody listens", request=request)
            case "hang":
                raise httpx2.ReadTimeout("no answer in time", request=request)
            case "html":
                return httpx2.Response(200, html="<html><body><h1>A gateway</h1></body></html>", request=request)
            case "truncate":
                content = response.content if response is not None else b'[{"id": "provider-0", "name"'
                return httpx2.Response(200, content=content[: len(content) // 2], request=request)
            case status:
                return httpx2.Response(status, json={"detail": f"a fault with status {status}"}, request=request)

    async def aclose(self) -> None:
        """Close the transport behind it."""
        await self._inner.aclose()


class _Selector(selectors.DefaultSelector):
    """Where the loop would sleep, its clock jumps instead."""

    jumped = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """What is ready now. Without a timer there is nothing to jump to: a thread is waited for."""
        if timeout is None:
            return super().select(None)
        ready = super().select(0)
        if not ready:
            self.jumped += timeout
        return ready


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop that never waits for time to pass. For programs that speak to nobody outside of it."""

    def __init__(self) -> None:
        self._clock = _Selector()
        super().__init__(self._clock)

    def time(self) -> float:
        """The time, as if it had been waited for."""
        return super().time() + self._clock.jumped
