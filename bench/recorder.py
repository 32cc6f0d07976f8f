"""A proxy that passes everything on as it is, and notes which requests went by."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

# At the beginning of what a connection sends, or right after an earlier request, the bodies of which are JSON.
_REQUEST = re.compile(rb"(GET|HEAD|POST|PUT|PATCH|DELETE) (/\S*) HTTP/1\.1\r\n")


@dataclass
class Recorder:
    """What went by.

    Attributes:
        address: where the proxy answers.
    """

    address: str = ""
    _sent: list[bytearray] = field(default_factory=list)

    @property
    def requests(self) -> list[tuple[str, str]]:
        """Method and path of every request, connection by connection."""
        found = (match for sent in self._sent for match in _REQUEST.finditer(sent))
        return [(match[1].decode(), match[2].decode()) for match in found]


@asynccontextmanager
async def recording(target: str) -> AsyncIterator[Recorder]:
    """A proxy on loopback for the server at an address."""
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
        # They end by themselves once the client is gone.
        await asyncio.gather(*connections)


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, noted: bytearray) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65536):
            noted += data
            writer.write(data)
            await writer.drain()
    writer.close()
