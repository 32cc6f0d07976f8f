"""A recording proxy between Isabella and a server, which fails on demand.

It passes requests on, one for each connection, and remembers them in the order in which they came. A fault strikes
`before` a request is passed on, so that nothing happened behind it, or `after`, so that it happened and only the
answer is lost.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Protocol, Self
from urllib.parse import parse_qs, urlsplit

#: What goes wrong: an HTTP status, or one of these.
#: drop: the connection closes without an answer; reset: it breaks with a TCP reset; hang: silence until the client
#: goes; truncate: half an answer; html: a page of a gateway, with status 200.
Kind = Literal["drop", "reset", "hang", "truncate", "html"] | int
When = Literal["before", "after"]
#: Whether a request is meant, by `METHOD /path` and body.
Match = Callable[[str, bytes], bool]

_START_SECONDS = 10.0
_HTML = "<html><body><h1>A gateway</h1></body></html>"


class Server(Protocol):
    """What answers requests in place of a server with an address."""

    def answer(self, start: str, headers: list[list[str]], body: bytes) -> bytes:
        """Return the whole response to a request, of which `start` is the first line."""


@dataclass(frozen=True)
class Seen:
    """A request that came.

    Attributes:
        method: the HTTP method.
        path: the path, without the query.
        query: what stood behind the question mark.
        status: what the client was answered; None where it got no answer.
        passed_on: whether the server got it.
        body: what it carried.
    """

    method: str
    path: str
    query: dict[str, str]
    status: int | None
    passed_on: bool
    body: bytes = b""

    @property
    def line(self) -> str:
        """`METHOD /path`."""
        return f"{self.method} {self.path}"


@dataclass
class _Fault:
    match: Match
    kind: Kind
    when: When
    left: int | None

    def strikes(self, line: str, body: bytes) -> bool:
        if self.left == 0 or not self.match(line, body):
            return False
        if self.left is not None:
            self.left -= 1
        return True


class Proxy:
    """A context manager that serves from a thread, on a loopback port.

    Args:
        target: the address that requests are passed on to, or what answers them.
    """

    def __init__(self, target: str | Server) -> None:
        self._server = None if isinstance(target, str) else target
        parts = urlsplit(target if isinstance(target, str) else "")
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._lock = threading.RLock()
        self._came = threading.Condition(self._lock)
        self._seen: list[Seen] = []
        self._faults: list[_Fault] = []
        self._local_port = 0
        self._stop: asyncio.Event | None = None
        self._held: re.Pattern[str] | None = None
        self._release: asyncio.Event | None = None

    def __enter__(self) -> Self:
        """Start serving; returns when connections are taken."""
        self._thread.start()
        if not self._ready.wait(_START_SECONDS):
            raise TimeoutError("the proxy did not start")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop serving; connections are cut."""
        assert self._stop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(_START_SECONDS)

    @property
    def url(self) -> str:
        """Its address, without a trailing slash."""
        return f"http://127.0.0.1:{self._local_port}"

    @property
    def requests(self) -> list[Seen]:
        """What has come so far."""
        with self._lock:
            return [*self._seen]

    @property
    def lines(self) -> list[str]:
        """`METHOD /path` of each request."""
        return [seen.line for seen in self.requests]

    @property
    def writes(self) -> list[str]:
        """`METHOD /path` of each request that is no reading."""
        return [seen.line for seen in self.requests if seen.method not in ("GET", "HEAD")]

    def fault(self, match: str | Match, kind: Kind, when: When = "before", *, times: int | None = 1) -> None:
        """Let something go wrong.

        Args:
            match: which requests it befalls: a regular expression for `METHOD /path`, or a function.
            kind: what goes wrong.
            when: before the request is passed on, or after it was carried out.
            times: how often; None for ever.
        """
        if isinstance(match, str):
            pattern = re.compile(match)
            fault = _Fault(lambda line, _: pattern.match(line) is not None, kind, when, times)
        else:
            fault = _Fault(match, kind, when, times)
        with self._lock:
            self._faults.append(fault)

    def hold(self, match: str) -> None:
        """Have requests that fit a regular expression for `METHOD /path` wait until they are released."""
        with self._lock:
            self._held, self._release = re.compile(match), asyncio.Event()

    def release(self) -> None:
        """Let all requests go on that wait, and hold none any more."""
        with self._lock:
            self._held, release = None, self._release
        if release is not None:
            self._loop.call_soon_threadsafe(release.set)

    def wait_for(self, match: str, seconds: float = 60.0, *, times: int = 1) -> None:
        """Wait until a request that fits has come, or so many of them.

        Raises:
            TimeoutError: they did not come.
        """
        pattern = re.compile(match)
        with self._came:
            if not self._came.wait_for(
                lambda: sum(pattern.match(seen.line) is not None for seen in self._seen) >= times, seconds
            ):
                raise TimeoutError(f"no request {match!r} came")

    def clear(self) -> None:
        """Forget all faults and all requests, and hold none."""
        self.release()
        with self._lock:
            self._faults.clear()
            self._seen.clear()

    # --- in the thread --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        clients: set[asyncio.Task[None]] = set()

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.ensure_future(self._client(reader, writer))
            clients.add(task)
            task.add_done_callback(clients.discard)

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        self._local_port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in [*clients]:
            task.cancel()
        await asyncio.gather(*clients, return_exceptions=True)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._exchange(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # The client went away.
        finally:
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        start, *fields = head.decode("latin-1").rstrip("\r\n").split("\r\n")
        method, target, _ = start.split(" ", 2)
        headers = [field.split(":", 1) for field in fields]
        length = next((int(value) for name, value in headers if name.lower() == "content-length"), 0)
        body = await reader.readexactly(length)
        path, _, query = target.partition("?")
        fault = self._fault_for(f"{method} {path}", body)
        await self._let_go(f"{method} {path}")
        passed_on = fault is None or fault.when == "after"
        answer = await self._pass_on(start, headers, body) if passed_on else b""
        if fault is not None:
            answer = _spoilt(fault.kind, answer)
        status = int(answer.split(b" ", 2)[1]) if answer else None
        found = {name: values[-1] for name, values in parse_qs(query).items()}
        with self._came:
            self._seen.append(Seen(method, path, found, status, passed_on, body))
            self._came.notify_all()
        if fault is not None and fault.kind == "hang":
            await reader.read()
        elif fault is not None and fault.kind == "reset":
            writer.transport.abort()
        else:
            writer.write(answer)
            await writer.drain()

    async def _let_go(self, line: str) -> None:
        with self._lock:
            release = self._release if self._held is not None and self._held.match(line) else None
        if release is not None:
            await release.wait()

    def _fault_for(self, line: str, body: bytes) -> _Fault | None:
        with self._lock:
            return next((fault for fault in self._faults if fault.strikes(line, body)), None)

    async def _pass_on(self, start: str, headers: list[list[str]], body: bytes) -> bytes:
        if self._server is not None:
            return self._server.answer(start, headers, body)
        try:
            reader, writer = await asyncio.open_connection(self._host, self._port)
        except ConnectionError:
            return _answer(502, "text/html", _HTML)
        try:
            kept = [f"{n}:{v}" for n, v in headers if n.lower() not in ("host", "connection", "accept-encoding")]
            head = "\r\n".join([start, f"Host: {self._host}:{self._port}", "Connection: close", *kept, "", ""])
            writer.write(head.encode("latin-1") + body)
            await writer.drain()
            return await reader.read()
        finally:
            writer.close()


def _spoilt(kind: Kind, answer: bytes) -> bytes:
    match kind:
        case "drop" | "reset" | "hang":
            return b""
        case "html":
            return _answer(200, "text/html", _HTML)
        case "truncate":
            whole = answer or _answer(200, "application/json", '[{"id": "provider-0", "name": "half of it"')
            head, _, body = whole.partition(b"\r\n\r\n")
            return head + b"\r\n\r\n" + body[: len(body) // 2]
        case status:
            return _answer(status, "application/json", f'{{"detail": "a fault with status {status}"}}')


def _answer(status: int, kind: str, body: str) -> bytes:
    head = f"HTTP/1.1 {status} A fault\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\nconnection: close"
    return f"{head}\r\n\r\n{body}".encode()
