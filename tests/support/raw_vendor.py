"""A vendor that answers with given bytes, for answers that no HTTP server would send."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

_SECONDS = 30.0


@dataclass
class RawRequest:
    """A request at the vendor, and the means to answer it.

    Attributes:
        head: its head, without the empty line.
        body: its body.
        sent: how many bytes were sent in answer.
        stalled: whether the client has taken nothing for a second.
    """

    head: str
    body: bytes
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    sent: int = 0
    stalled: bool = False

    async def send(self, data: bytes) -> None:
        """Send bytes; return when the system has taken nearly all of them."""
        self.writer.write(data)
        drained = asyncio.ensure_future(self.writer.drain())
        await asyncio.wait({drained}, timeout=1.0)
        self.stalled = not drained.done()
        await drained
        self.stalled = False
        self.sent += len(data)

    async def until_closed(self) -> None:
        """Send nothing until the client closes the connection."""
        await self.reader.read()

    def reset(self) -> None:
        """Break the connection with a TCP reset."""
        connection = self.writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Script = Callable[[RawRequest], Awaitable[None]]


def sends(*pieces: bytes) -> Script:
    """A script that sends bytes and closes the connection."""

    async def script(request: RawRequest) -> None:
        for piece in pieces:
            await request.send(piece)

    return script


def sends_and_waits(*pieces: bytes) -> Script:
    """A script that sends bytes and then nothing, until the client closes the connection."""

    async def script(request: RawRequest) -> None:
        for piece in pieces:
            await request.send(piece)
        await request.until_closed()

    return script


def sends_for_ever(head: bytes, piece: bytes) -> Script:
    """A script that never ends its answer."""

    async def script(request: RawRequest) -> None:
        await request.send(head)
        while True:
            await request.send(piece)
            await asyncio.sleep(0)

    return script


def sends_and_resets(*pieces: bytes) -> Script:
    """A script that sends bytes, lets the client read them, and breaks the connection with a reset."""

    async def script(request: RawRequest) -> None:
        for piece in pieces:
            await request.send(piece)
        # A reset discards what the client has not read yet.
        await asyncio.sleep(0.2 if pieces else 0)
        request.reset()

    return script


class RawVendor:
    """A context manager that serves from a thread, on a loopback port; each connection has one request."""

    def __init__(self) -> None:
        self.script: Script = sends()
        self.requests: list[RawRequest] = []
        self.loop = asyncio.new_event_loop()
        self._open = 0
        self._changed = threading.Condition()
        self._ready = threading.Event()
        self._stop = asyncio.Event()
        self._port = 0
        self._thread = threading.Thread(target=self._run, name="raw-vendor", daemon=True)

    def __enter__(self) -> Self:
        """Start serving."""
        self._thread.start()
        if not self._ready.wait(_SECONDS):
            raise TimeoutError("the vendor did not start")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop serving; connections are cut."""
        self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(_SECONDS)

    @property
    def url(self) -> str:
        """Its base URL."""
        return f"http://127.0.0.1:{self._port}/v1"

    def answer(self, script: Script) -> None:
        """Answer the following requests by this script, and forget the former ones."""
        with self._changed:
            self.script = script
            self.requests = []

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until something is so.

        Raises:
            TimeoutError: it does not happen.
        """
        with self._changed:
            for _ in range(int(_SECONDS / 0.05)):
                if self._changed.wait_for(condition, 0.05):
                    return
        raise TimeoutError(what)

    def wait_until_closed(self) -> None:
        """Wait until no connection is open. Raises TimeoutError if one stays open."""
        self.wait_for(lambda: self._open == 0, f"{self._open} connections stay open")

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_until_complete(self._serve())
        finally:
            self.loop.close()

    async def _serve(self) -> None:
        tasks: set[asyncio.Task[None]] = set()

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.ensure_future(self._connection(reader, writer))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        server = await asyncio.start_server(connected, "127.0.0.1", 0, backlog=512)
        self._port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in [*tasks]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._count(1)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            fields = (line.lower().partition(":") for line in head.split("\r\n"))
            length = next((int(value) for name, _, value in fields if name == "content-length"), 0)
            request = RawRequest(head.removesuffix("\r\n\r\n"), await reader.readexactly(length), reader, writer)
            with self._changed:
                self.requests.append(request)
                self._changed.notify_all()
            await self.script(request)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # The client went away.
        finally:
            writer.close()
            self._count(-1)

    def _count(self, change: int) -> None:
        with self._changed:
            self._open += change
            self._changed.notify_all()
