"""Serving HTTP/1.1 within limits: how many connections there are, and how long a request may take to arrive.

A connection *waits* until its request is admitted: while its head comes, while the application decides who sent it,
and between two requests. If there are too many connections, the one that has waited longest is closed. Clients that
send nothing cannot keep others out, and no admitted request is ever broken.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from isabella.system.sockets import ROW, allow_files

Headers = list[tuple[bytes, bytes]]

#: How long an idle connection stays open: longer than clients keep one (httpx 5 s, Node.js 4 s). A request that is
#: sent while the server closes its connection fails, and not every client may send it again.
KEEP_ALIVE_SECONDS = 75

#: The key of the connection in the state of a request's scope.
_CONNECTION = "isabella.connection"
#: Descriptors for everything that is not a client's connection, and for connections that are accepted and not counted
#: yet, or aborted and not closed yet: asyncio takes a few turns for each.
_RESERVED_FILES = 32 + 4 * ROW
#: How much is read at once: of a request that is refused, so much may have been read before.
_READ_BYTES = 64 * 1024
_LOG_SECONDS = 60.0
_BUSY = b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\ncontent-length: 0\r\nretry-after: 5\r\n\r\n"


@dataclass(frozen=True)
class ConnectionLimits:
    """The limits of the connections of one server.

    Attributes:
        head_seconds: the time until a request is admitted, from the connection or the first byte after an answer.
        connections: how many connections there are at most; fewer if the process may not open as many files.
        per_address: how many of one address may wait, loopback apart: a reverse proxy may be there.
        refused_bytes: how much is still read, and dropped, of the body of a request that was refused before it was
            admitted. Many clients read no answer before they have sent their request.
    """

    head_seconds: float = 30.0
    connections: int = 1000
    per_address: int = 100
    refused_bytes: int = 64 * 1024 * 1024


def admit(scope: Mapping[str, Any]) -> None:
    """Mark a request as one of a known sender: it may take its time, and its connection is not closed for others."""
    connection = scope.get("state", {}).get(_CONNECTION)
    if connection is not None:
        connection.admit()


def end_at_shutdown(scope: Mapping[str, Any]) -> None:
    """Mark a request whose answer never ends by itself: when the server shuts down, it is not waited for."""
    connection = scope.get("state", {}).get(_CONNECTION)
    if connection is not None:
        connection.ends_at_shutdown = True


def address_group(host: str) -> str | None:
    """Return the address, or the network of an IPv6 address, whose limits a client shares; None for loopback."""
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return host
    if ip.is_loopback:
        return None
    return host if ip.version == 4 else str(ipaddress.ip_network((ip, 64), strict=False))


def http_protocol(
    limits: ConnectionLimits, malformed: Callable[[str], tuple[bytes, Headers]]
) -> type[asyncio.Protocol]:
    """Return the protocol of one server, for uvicorn. It also allows the process to open as many files as it may.

    More bytes do not extend the time for a head, so that it also ends a body that still comes after its request was
    refused. uvicorn limits only the time without a byte after an answer. `malformed` returns the body and the headers
    of the answer to bytes that are not an HTTP request.
    """
    connections = _Connections(limits)

    class LimitedProtocol(H11Protocol):
        address: str | None = None
        _timer: asyncio.TimerHandle | None = None
        _admitted = False
        #: Whether the request that was answered last had been admitted.
        _was_admitted = False
        #: Whether the answer under way never ends by itself.
        ends_at_shutdown = False
        _dropped = 0

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            transport.max_size = _READ_BYTES  # type: ignore[attr-defined]
            self.address = address_group(self.client[0]) if self.client else None
            self.app_state = {**self.app_state, _CONNECTION: self}
            if connections.add(self):
                self._limit_head()
            else:
                transport.write(_BUSY)
                transport.close()

        def data_received(self, data: bytes) -> None:
            if self.cycle is not None and self.cycle.response_complete and self.conn.their_state is h11.SEND_BODY:
                self._dropped += len(data)
                if self._dropped > limits.refused_bytes and not self._was_admitted:
                    self.transport.abort()
                    return
            super().data_received(data)
            self._limit_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            connections.remove(self)
            self.app_state = {}
            super().connection_lost(exc)

        def on_response_complete(self) -> None:
            self._was_admitted, self._admitted = self._admitted, False
            self.ends_at_shutdown = False
            self._dropped = 0
            self._stop_timer()
            connections.wait(self)
            # What came of the body of a refused request is not needed.
            self.cycle.body = bytearray()
            super().on_response_complete()
            if not self.cycle.response_complete:
                # The next request had come already.
                self._limit_head()

        def shutdown(self) -> None:
            super().shutdown()
            if self.ends_at_shutdown:
                self.transport.abort()

        def admit(self) -> None:
            self._admitted = True
            self._stop_timer()
            connections.stop_waiting(self)

        def send_400_response(self, msg: str) -> None:
            if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
                # A part of another answer is on its way.
                self.transport.abort()
                return
            body, headers = malformed(msg)
            reason = HTTPStatus.BAD_REQUEST.phrase.encode()
            for event in (
                h11.Response(status_code=400, headers=[*headers, (b"connection", b"close")], reason=reason),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
            self.transport.close()

        def _limit_head(self) -> None:
            if self._timer is None and not self._admitted:
                self._timer = self.loop.call_later(limits.head_seconds, self.transport.abort)

        def _stop_timer(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    return LimitedProtocol


class _Connections:
    """The connections of a server, and which of them wait, the longest wait first."""

    def __init__(self, limits: ConnectionLimits) -> None:
        files = allow_files()
        self._most = max(1, min(limits.connections, files - max(_RESERVED_FILES, files // 4)))
        self._most_of_address = limits.per_address
        self._open: set[Any] = set()
        self._waiting: dict[Any, None] = {}
        self._of_address: defaultdict[str, dict[Any, None]] = defaultdict(dict)
        self._shed: Counter[str] = Counter()
        self._logged: float | None = None

    def add(self, connection: Any) -> bool:
        """Add a connection; return whether there is room for it, which a waiting one may have to make."""
        if len(self._open) >= self._most and not self._close_first(self._waiting):
            self._note("refused")
            return False
        self._open.add(connection)
        self.wait(connection)
        return True

    def remove(self, connection: Any) -> None:
        self._open.discard(connection)
        self.stop_waiting(connection)

    def wait(self, connection: Any) -> None:
        if connection not in self._open:
            return
        self.stop_waiting(connection)
        if connection.address is not None:
            own = self._of_address[connection.address]
            if len(own) >= self._most_of_address:
                self._close_first(own)
            self._of_address[connection.address][connection] = None
        self._waiting[connection] = None

    def stop_waiting(self, connection: Any) -> None:
        self._waiting.pop(connection, None)
        own = self._of_address.get(connection.address or "", {})
        own.pop(connection, None)
        if not own:
            self._of_address.pop(connection.address or "", None)

    def _close_first(self, waiting: Mapping[Any, None]) -> bool:
        first = next(iter(waiting), None)
        if first is None:
            return False
        self.remove(first)
        first.transport.abort()
        self._note("closed")
        return True

    def _note(self, what: str) -> None:
        """Log at most one line a minute about connections that were closed or refused."""
        self._shed[what] += 1
        now = time.monotonic()
        if self._logged is None or now - self._logged >= _LOG_SECONDS:
            self._logged = now
            # Imported here: a backend listens before its logs are set up.
            import structlog

            structlog.get_logger().warning("too many connections", most=self._most, **self._shed)
            self._shed.clear()
