"""A small load balancer for TCP, as HAProxy is with `balance roundrobin` and `option httpchk`."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

_LOOK_EVERY = 0.25
_SECONDS = 2.0
_PIECE = 65536


class Balancer:
    """Passes each connection to the next server that is healthy: that answers `GET check` with 200."""

    def __init__(self, ports: Sequence[int], check: str) -> None:
        self._ports = ports
        self._check = check
        self._next = itertools.count()
        self._healthy: set[int] = set()
        self._changed = asyncio.Event()
        self._connections: set[asyncio.Task[None]] = set()
        self.port = 0  # the port of loopback that it listens on

    async def until(self, port: int, *, healthy: bool, seconds: float = 300.0) -> None:
        """Wait until a server is healthy, or is not."""
        async with asyncio.timeout(seconds):
            while (port in self._healthy) is not healthy:
                await self._changed.wait()

    async def look(self) -> None:
        """Ask the servers, until cancelled."""
        while True:
            healthy = await asyncio.gather(*map(self._answers, self._ports))
            self._healthy = {port for port, answers in zip(self._ports, healthy, strict=True) if answers}
            self._changed.set()
            self._changed = asyncio.Event()
            await asyncio.sleep(_LOOK_EVERY)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass a connection on."""
        server = await self._server()
        if server is None:
            writer.close()
            return
        to_server, to_client = _pass(reader, server[1]), _pass(server[0], writer)
        # Like a proxy: if either end is closed, so is the other.
        tasks = {asyncio.ensure_future(to_server), asyncio.ensure_future(to_client)}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            for end in (writer, server[1]):
                end.close()

    async def _server(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """Connect to the next healthy server; to another one if it refuses."""
        for _ in self._ports:
            ports = [port for port in self._ports if port in self._healthy] or self._ports
            port = ports[next(self._next) % len(ports)]
            try:
                return await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                self._healthy.discard(port)
        return None

    async def _answers(self, port: int) -> bool:
        try:
            async with asyncio.timeout(_SECONDS):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                request = f"GET {self._check} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
                writer.write(request.encode())
                answer = await reader.readline()
                writer.close()
        except (OSError, TimeoutError):
            return False
        return b" 200 " in answer


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(_PIECE):
            writer.write(data)
            await writer.drain()


@asynccontextmanager
async def balancing(ports: Sequence[int], check: str) -> AsyncIterator[Balancer]:
    """Balance connections between the servers at these ports of loopback."""
    balancer = Balancer(ports, check)
    server = await asyncio.start_server(balancer.serve, "127.0.0.1", 0)
    balancer.port = server.sockets[0].getsockname()[1]
    looking = asyncio.create_task(balancer.look())
    try:
        yield balancer
    finally:
        looking.cancel()
        server.close()
