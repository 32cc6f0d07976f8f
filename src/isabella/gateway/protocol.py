"""HTTP/1.1 for the clients of the gateway: the protocol of uvicorn, with a limit on the time for a request."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from isabella.gateway.errors import error_body


def http_protocol(head_seconds: float) -> type[asyncio.Protocol]:
    """Return the protocol of connections that are closed if the head of a request has not come after so many seconds.

    The time begins with the connection, or with the first byte after an answer. More bytes do not extend it, so that
    it also ends a body that still comes after its request was refused. uvicorn limits only the time without a byte
    after an answer.
    """

    class GatewayProtocol(H11Protocol):
        _head_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._limit_head()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._limit_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            super().connection_lost(exc)

        def send_400_response(self, msg: str) -> None:
            """Answer bytes that are no HTTP request, in OpenAI's shape like any other refusal."""
            if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
                # A part of another answer is on its way.
                self.transport.abort()
                return
            body, headers = error_body("malformed_request", f"Isabella's gateway: {msg}")
            for event in (
                h11.Response(status_code=400, headers=[*headers, (b"connection", b"close")], reason=b"Bad Request"),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
            self.transport.close()

        def _limit_head(self) -> None:
            if self.cycle is not None and not self.cycle.response_complete:
                self._stop_timer()
            elif self._head_timer is None:
                self._head_timer = self.loop.call_later(head_seconds, self.transport.abort)

        def _stop_timer(self) -> None:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

    return GatewayProtocol
