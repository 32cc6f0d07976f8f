"""A transparent proxy that records method and path of each request."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

# Matches at the start of a connection's data, or directly after an earlier request with a JSON body.
_REQUEST = re.compile(rb"(GET|HEAD|POST|PUT|PATCH|DELETE) (/\S*) HTTP/1\.1\r\n")


@dataclass
class Recorder:
    """The recorded requests.

    Attributes:
        address: the base URL of the proxy.
    """

    address: str = ""
    _sent: list[bytearray] = field(default_factory=list)

    @property
    def requests(self) -> list[tuple[str, str]]:
        """Method and path of each request, grouped by connection."""
        found = (match for sent in self._sent for match in _REQUEST.finditer(sent))
        return [(match[1].decode(), match[2].decode()) for match in found]


@asynccontextmanager
async def recording(target: str) -> AsyncIterator[Recorder]:
    """Run a proxy on loopback in front of a server."""
    recorder = Recorder()
    port = urlsplit(target).port

    connections: set[asyncio.Task[object]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if (task := asyncio.current_task()) is not None:
            connections.add(task)
        sent = bytearray()
        recorder._sent.append(sent)
        upstream, to_upstream = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(_pass(reader, to_upstream, sent), _pass(upstream, writer, bytearray()))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    recorder.address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield recorder
    finally:
        server.close()
        # They end when the client disconnects.
        await asyncio.gather(*connections)


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, noted: bytearray) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65536):
            noted += data
            writer.write(data)
            await writer.drain()
    writer.close()
