"""Limits of servers: which connection makes room, descriptors that are gone, bodies, streams, and lines of log."""

from __future__ import annotations

import errno
import json
import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import anyio
import httpx2
import pytest
import structlog
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Message
from structlog.testing import capture_logs

from isabella.server import startup_app
from isabella.server.auth import _SESSION
from isabella.server.request_limits import BodyLimits, RequestLimits, StreamLimits
from isabella.server.sessions import Sessions
from isabella.server.web.rendering import stream
from isabella.system import http_server
from isabella.system.http_server import ConnectionLimits, _Connections, admit
from isabella.system.logging import _Limit, configure_logs
from isabella.system.sockets import ListeningSocket, listening_socket

_SECONDS = 30.0


def test_an_idle_connection_is_kept_longer_than_clients_keep_it() -> None:
    """Otherwise a request is sent on a connection that the server is closing, and fails."""
    kept = startup_app.http_server(Starlette()).config.timeout_keep_alive
    assert kept > (httpx2.Limits().keepalive_expiry or 0) > 0


def test_a_server_that_stops_waits_for_no_page() -> None:
    """The event stream of an open page never ends by itself."""

    async def fragments() -> AsyncGenerator[str, None]:
        yield "<p>here</p>"
        await anyio.sleep_forever()

    async def page(_request: Request) -> Response:
        return stream(fragments())

    server = startup_app.http_server(Starlette(routes=[Route("/page", page)]))
    server.config.timeout_graceful_shutdown = None
    with closing(listening_socket("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with (
            httpx2.Client(base_url=address, trust_env=False, timeout=_SECONDS) as client,
            client.stream("GET", "/page") as response,
        ):
            lines = response.iter_lines()
            assert next(lines) == "event: put"
            server.should_exit = True
            thread.join(_SECONDS)
            assert not thread.is_alive()


# --- connections ----------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Connection:
    """A connection, which is its own transport."""

    address: str | None = None
    aborted: bool = False

    @property
    def transport(self) -> Connection:
        """The connection itself."""
        return self

    def abort(self) -> None:
        """Close it."""
        self.aborted = True


def opened(connections: _Connections, count: int, address: str | None = None) -> list[Connection]:
    """Add connections for which there is room."""
    made = [Connection(address) for _ in range(count)]
    assert all(connections.add(one) for one in made)
    return made


def test_the_longest_wait_makes_room() -> None:
    """An admitted request is never broken; after its answer its connection is the last in the line."""
    connections = _Connections(ConnectionLimits(connections=3))
    first, second, third = opened(connections, 3)
    connections.stop_waiting(first)
    opened(connections, 1)
    assert [one.aborted for one in (first, second, third)] == [False, True, False]
    connections.wait(first)
    opened(connections, 1)
    assert [one.aborted for one in (first, second, third)] == [False, True, True]


def test_no_room_if_all_are_admitted() -> None:
    """The newcomer is refused, until one of them has gone."""
    connections = _Connections(ConnectionLimits(connections=2))
    for one in opened(connections, 2):
        connections.stop_waiting(one)
    assert not connections.add(Connection())
    connections.remove(one)
    opened(connections, 1)


def test_an_address_makes_room_for_itself() -> None:
    """Beyond its share it closes its own connections only; on loopback there is no share."""
    connections = _Connections(ConnectionLimits(connections=100, per_address=2))
    other, own = opened(connections, 2, "192.0.2.1"), opened(connections, 3, "192.0.2.2")
    assert [one.aborted for one in other + own] == [False, False, True, False, False]
    assert not any(one.aborted for one in opened(connections, 50))
    for one in other + own:
        connections.remove(one)
    assert connections._of_address == {}


def test_few_descriptors_mean_few_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of the descriptors is kept for everything else."""
    monkeypatch.setattr(http_server, "allow_files", lambda: 64)
    assert _Connections(ConnectionLimits())._most == 16


def test_a_line_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many connections are closed, one line tells it, and the next one how many there were since."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    connections = _Connections(ConnectionLimits(connections=1))
    with capture_logs() as lines:
        opened(connections, 20_001)
        assert [line["closed"] for line in lines] == [1]
        now[0] = 60.0
        opened(connections, 1)
    assert [line["closed"] for line in lines] == [1, 20_000]


def test_an_application_without_such_a_server() -> None:
    """A request of another server can be admitted, too."""
    admit({"type": "http"})
    admit({"type": "http", "state": {}})


# --- descriptors ----------------------------------------------------------------------------------------------------

_SERVER = """
import asyncio, os, resource, sys
from isabella.system.sockets import listening_socket

async def serve(reader, writer):
    writer.write(b"served")
    writer.close()

async def main():
    listener = listening_socket("127.0.0.1", 0)
    await asyncio.start_server(serve, sock=listener)
    print(listener.getsockname()[1], flush=True)
    taken = []
    while order := await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline):
        try:
            while order == "take\\n":
                taken.append(os.dup(0))
        except OSError:
            pass
        while order == "free\\n" and taken:
            os.close(taken.pop())
        print("done", flush=True)

resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
asyncio.run(main())
"""


def test_no_descriptor_is_left() -> None:
    """Connections are closed at once and nothing is logged; when there are descriptors again, they are served."""
    with subprocess.Popen(
        [sys.executable, "-c", _SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        port = int(process.stdout.readline())

        def order(what: str) -> None:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(f"{what}\n")
            process.stdin.flush()
            assert process.stdout.readline() == "done\n"

        def ask() -> bytes:
            with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
                try:
                    return client.recv(100)
                except ConnectionResetError:
                    return b""

        assert ask() == b"served"
        for _ in range(2):
            order("take")
            assert [ask() for _ in range(50)] == [b""] * 50
            order("free")
            assert ask() == b"served"
        _, errors = process.communicate()
    assert errors == ""


def test_a_shortage_that_no_descriptor_helps_against(monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loop is told every other time: it waits a second, and does not try again at once."""

    def accept(_self: socket.socket) -> None:
        raise OSError(errno.ENFILE, "too many open files in the system")

    monkeypatch.setattr(socket.socket, "accept", accept)
    told = []
    with listening_socket("127.0.0.1", 0) as listener:
        for _ in range(4):
            with pytest.raises(OSError) as error:  # noqa: PT011 - the class tells
                listener.accept()
            told.append(type(error.value) is OSError)
    assert told == [True, False, True, False]


def test_other_errors_of_accept_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that its client has given up is the event loop's business."""

    def accept(_self: socket.socket) -> None:
        raise ConnectionAbortedError

    monkeypatch.setattr(socket.socket, "accept", accept)
    with listening_socket("127.0.0.1", 0) as listener, pytest.raises(ConnectionAbortedError):
        listener.accept()


def test_a_few_connections_are_accepted_in_a_row() -> None:
    """Then those that came are read first."""
    with listening_socket("127.0.0.1", 0) as listener:
        assert isinstance(listener, ListeningSocket)
        clients = [socket.create_connection(listener.getsockname()) for _ in range(20)]
        rows, accepted = [0], list[socket.socket]()
        while len(accepted) < len(clients):
            try:
                accepted.append(listener.accept()[0])
                rows[-1] += 1
            except BlockingIOError:
                rows.append(0)
        for one in (*clients, *accepted):
            one.close()
    assert rows == [4, 4, 4, 4, 4]


# --- bodies and streams ---------------------------------------------------------------------------------------------


@dataclass
class Call:
    """A request to an application in this process.

    Attributes:
        body: the parts of its body; after them nothing comes.
        length: what it announces; None for a body in chunks.
        path: its path.
    """

    body: list[bytes] = field(default_factory=list)
    length: int | None = None
    path: str = "/read"
    session: Any = None
    sent: list[Message] = field(default_factory=list)

    async def run(self, app: RequestLimits) -> int:
        """Return the status."""
        headers = [(b"transfer-encoding", b"chunked")]
        if self.length is not None:
            headers = [(b"content-length", str(self.length).encode())]
        parts = self.body or [b""]
        whole = sum(map(len, parts)) == self.length
        messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
        messages[-1]["more_body"] = not whole

        async def receive() -> Message:
            if not messages:
                await anyio.sleep_forever()
            return messages.pop(0)

        async def send(message: Message) -> None:
            self.sent.append(message)

        scope = {"type": "http", "method": "POST", "path": self.path, "headers": headers, "query_string": b""}
        await app(scope | {_SESSION: self.session}, receive, send)
        return int(self.sent[0]["status"])


async def _read(request: Request) -> Response:
    return PlainTextResponse(str(len(await request.body())))


async def _endless(_request: Request) -> Response:
    async def events() -> Any:
        yield "data: x\n\n"
        await anyio.sleep_forever()

    return StreamingResponse(events(), media_type="text/event-stream")


def limited(sessions: Sessions | None = None, **options: Any) -> RequestLimits:
    """An application that reads bodies, and one whose stream does not end."""
    routes = [Route("/read", _read, methods=["POST"]), Route("/endless", _endless, methods=["POST"])]
    bodies = BodyLimits(largest=1000, small=100, most_small=2, seconds=options.pop("seconds", 3600.0))
    return RequestLimits(Starlette(routes=routes), sessions or Sessions(SecretStr("token")), bodies, **options)


@pytest.mark.parametrize(
    ("call", "status"),
    [
        (Call([b"x" * 1000], 1000), 200),
        (Call([], 0), 200),
        (Call([], 1001), 413),
        (Call([b"x" * 600, b"x" * 600]), 413),
        (Call([b"x"], 50), 408),
        (Call([b"x"], 500), 408),
        (Call([b"x" * 60, b"x" * 60]), 408),
    ],
    ids=["large", "none", "announced", "too many chunks", "late", "large and late", "chunks and late"],
)
def test_limits_of_a_body(call: Call, status: int) -> None:
    """Size and time; what a body that failed was waiting for is free again."""

    async def run() -> tuple[int, int]:
        app = limited(seconds=0.01 if status == 408 else 3600.0)
        first = await call.run(app)
        for _ in range(3):
            assert await Call([b"x" * 50], 50).run(app) == 200
        return first, await Call([b"x" * 500], 500).run(app)

    assert anyio.run(run) == (status, 200)


def test_large_bodies_wait_for_each_other() -> None:
    """The second is read when the first request is over, and refused if that takes too long; a small one passes."""

    async def run() -> None:
        app = limited()
        async with anyio.create_task_group() as tasks:
            stuck = Call([b"x"], 500)
            tasks.start_soon(stuck.run, app)
            await anyio.wait_all_tasks_blocked()
            waits = Call([b"x" * 500], 500)
            tasks.start_soon(waits.run, app)
            assert await Call([b"x" * 50], 50).run(app) == 200
            await anyio.wait_all_tasks_blocked()
            assert waits.sent == []
            tasks.cancel_scope.cancel()
        app = limited(seconds=0.01)
        async with anyio.create_task_group() as tasks:
            app._memory.large.acquire_nowait()
            assert await Call([b"x" * 500], 500).run(app) == 503
            app._memory.large.release()
            assert await Call([b"x" * 500], 500).run(app) == 200

    anyio.run(run)


def test_streams_of_a_session() -> None:
    """One too many is refused before it begins, and counts for no other session; one that has gone makes room."""
    sessions = Sessions(SecretStr("token"))
    first, other = (sessions.find(sessions.begin(name, "")) for name in ("first", "other"))

    async def run() -> None:
        app = limited(sessions, streams=StreamLimits(session=2, token=1))
        async with anyio.create_task_group() as outer:
            async with anyio.create_task_group() as tasks:
                calls = [Call(path="/endless", length=0, session=first) for _ in range(2)]
                for call in calls:
                    tasks.start_soon(call.run, app)
                await anyio.wait_all_tasks_blocked()
                assert await Call(path="/endless", length=0, session=first).run(app) == 429
                assert await Call([], 0, session=first).run(app) == 200
                for session in (other, None):
                    outer.start_soon(Call(path="/endless", length=0, session=session).run, app)
                await anyio.wait_all_tasks_blocked()
                assert await Call(path="/endless", length=0).run(app) == 429
                assert first is not None
                sessions.end(first.id)
            # The streams of the session that was ended are complete.
            assert [call.sent[-1] for call in calls] == [
                {"type": "http.response.body", "body": b"", "more_body": False}
            ] * 2
            assert set(app._streams) == {None, other.id if other else ""}
            outer.cancel_scope.cancel()
        assert app._streams == {}

    anyio.run(run)


# --- lines of log ---------------------------------------------------------------------------------------------------


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """The log lines so far."""
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_library_that_floods_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    """Of one kind of warnings a minute has one line; other kinds, other exceptions and information pass."""
    configure_logs()
    library = logging.getLogger("some.library")
    for number in range(1000):
        library.warning("socket.accept() out of system resource\nsocket: %d", number)
        library.info("an information")
    for kind in (ValueError, KeyError):
        for _ in range(10):
            library.error("failed", exc_info=kind("x"))
    found = lines(capsys)
    assert [line["event"] for line in found if line["level"] == "warning"] == [
        "socket.accept() out of system resource\nsocket: 0"
    ]
    assert sum(line["level"] == "error" for line in found) == 2
    assert sum(line["level"] == "info" for line in found) == 1000


def test_a_request_that_fails_again_and_again(capsys: pytest.CaptureFixture[str]) -> None:
    """Isabella's own warnings have more lines, one of too little memory excepted."""
    configure_logs()
    log = structlog.get_logger("isabella.server.errors")
    for _ in range(1000):
        log.warning("request failed", code="not_ready")
        log.error("out of memory", exc_info=MemoryError())
    found = [line["event"] for line in lines(capsys)]
    assert found.count("request failed") == 30
    assert found.count("out of memory") == 1


def test_the_next_minute_tells_how_many_were_left_out() -> None:
    """In its first line; and the number of kinds that are remembered has a limit."""
    now = [0.0]
    limit = _Limit(lambda: now[0])

    def passes(message: Any, name: str = "some.library") -> logging.LogRecord | None:
        record = logging.LogRecord(name, logging.WARNING, "", 0, message, None, None)
        return record if limit.filter(record) else None

    assert [passes("x") is not None for _ in range(4)] == [True, False, False, False]
    now[0] = 60.0
    later = passes("x")
    assert later is not None
    assert later.msg == "x (3 more lines like this in the last minutes)"
    own: Any = {"event": "y"}
    for _ in range(32):
        passes(dict(own), "isabella.x")
    now[0] = 120.0
    told = passes(own, "isabella.x")
    assert told is not None
    assert own["left_out"] == 2
    for number in range(2000):
        passes(f"kind {number}")
    assert len(limit._kinds) == 1000
