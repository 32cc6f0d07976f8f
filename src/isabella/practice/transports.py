"""Connections that can be broken on purpose: a TCP reset, or an end in mid-answer."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Mapping
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

Address = tuple[str, int]


class Transports:
    """The open connections of one server, found by the client's address and port."""

    def __init__(self) -> None:
        self._open: dict[Address, asyncio.Transport] = {}

    def reset(self, scope: Mapping[str, Any]) -> None:
        """Break a request's connection with a TCP reset."""
        transport = self._open.get(_address(scope))
        if transport is None or transport.is_closing():
            return
        connection = transport.get_extra_info("socket")
        # With no time to linger, closing the socket sends a reset instead of an orderly end.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()

    def end(self, scope: Mapping[str, Any]) -> None:
        """End a request's connection after what has been written, without what marks the end of the answer."""
        transport = self._open.get(_address(scope))
        if transport is not None:
            transport.close()

    def abort_all(self) -> None:
        """Break all connections, so that no answer is waited for any more."""
        for transport in list(self._open.values()):
            transport.abort()

    def protocol(self) -> type[asyncio.Protocol]:
        """An HTTP protocol for uvicorn whose connections are listed here."""
        open_transports = self._open

        class ListedProtocol(H11Protocol):
            def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
                super().connection_made(transport)
                if self.client is not None:
                    open_transports[self.client] = transport

            def connection_lost(self, exc: Exception | None) -> None:
                if self.client is not None:
                    open_transports.pop(self.client, None)
                super().connection_lost(exc)

        return ListedProtocol


def _address(scope: Mapping[str, Any]) -> Address:
    host, port = scope["client"]
    return str(host), int(port)
