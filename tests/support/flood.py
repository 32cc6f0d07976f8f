"""A backend in a process of its own, without a Letta, and clients that flood it."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import psutil

TOKEN = "a-token-for-the-floods"
_SECONDS = 60.0
_MIB = 1024 * 1024
_ISABELLA = """
import resource, sys
for limit, value in (("RLIMIT_AS", sys.argv[1]), ("RLIMIT_NOFILE", sys.argv[2])):
    resource.setrlimit(getattr(resource, limit), (int(value),) * 2)
sys.argv = ["isabella", "up", "--no-practice"]
from isabella.cli import main
main()
"""


@dataclass
class FloodedBackend:
    """A backend that waits for its Letta.

    Attributes:
        process: its process.
        port: its port.
        log: the file with everything that it wrote.
    """

    process: psutil.Process
    port: int
    log: Path

    def connect(self) -> socket.socket:
        """Open a connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=_SECONDS)

    def ask(self, path: str, *fields: str, method: str = "GET", body: bytes = b"") -> tuple[int, bytes]:
        """Send a request on a connection of its own; return the status, or 0 without an answer, and the answer."""
        answer = b""
        with self.connect() as connection:
            with suppress(ConnectionError):
                connection.sendall(head(path, *fields, "Connection: close", method=method, length=len(body)) + body)
            with suppress(ConnectionError):
                while part := connection.recv(65536):
                    answer += part
        return status_of(answer), answer

    def memory(self) -> int:
        """Return its resident memory in MiB."""
        return int(self.process.memory_info().rss) // _MIB

    def connections(self) -> int:
        """Return how many connections of clients it has open."""
        found = self.process.net_connections(kind="tcp4")
        return sum(one.laddr.port == self.port and one.status == psutil.CONN_ESTABLISHED for one in found)

    def lines(self) -> list[str]:
        """Return the lines that it has logged."""
        return self.log.read_text().splitlines()


@contextmanager
def flooded_backend(folder: Path, *, memory: int = 4096 * _MIB, files: int = 4096) -> Iterator[FloodedBackend]:
    """Start a backend with limits of address space in bytes and of open files."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "ISABELLA_HOME": str(folder / "home"),
        "ISABELLA_TOKEN": TOKEN,
        "ISABELLA_PORT": "0",
        "ISABELLA_GATEWAY": "off",
        # Nobody listens there: it serves, and is not ready.
        "LETTA_BASE_URL": "http://127.0.0.1:9",
    }
    log = folder / "backend.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", _ISABELLA, str(memory), str(files)],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        started = psutil.Process(process.pid)
        backend = FloodedBackend(started, _listening(started), log)
        assert backend.ask("/health")[0] == 200
        # Memory is measured from then on, so the whole application has to be imported.
        while backend.ask("/login")[0] == 503:
            time.sleep(0.05)
        yield backend
    finally:
        process.terminate()
        process.wait(_SECONDS)


def _listening(process: psutil.Process) -> int:
    deadline = time.monotonic() + _SECONDS
    while time.monotonic() < deadline and process.is_running():
        for one in process.net_connections(kind="tcp4"):
            if one.status == psutil.CONN_LISTEN:
                return int(one.laddr.port)
        time.sleep(0.05)
    raise TimeoutError("the backend does not listen")


def head(path: str, *fields: str, method: str = "GET", length: int = 0) -> bytes:
    """Return the head of a request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Length: {length}", *fields, "", ""]
    return "\r\n".join(lines).encode()


def status_of(answer: bytes) -> int:
    """Return the status of an answer; 0 if the connection was closed without one."""
    return int(answer[9:12]) if answer.startswith(b"HTTP/1.1 ") else 0


class Clients:
    """Connections that stay open until the end of a block."""

    def __init__(self, backend: FloodedBackend) -> None:
        self._backend = backend
        self._stack = ExitStack()
        self.open: list[socket.socket] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def send(self, data: bytes) -> socket.socket:
        """Send bytes on a new connection, and keep it open."""
        client = self._stack.enter_context(self._backend.connect())
        self.open.append(client)
        # It may have been closed for others.
        with suppress(ConnectionError):
            client.sendall(data)
        return client

    def push(self, data: bytes, seconds: float = 2.0) -> list[int]:
        """Send the same bytes on each connection until none takes any for so long; return how many each took."""
        taken = dict.fromkeys(self.open, 0)
        pending = set(self.open)
        for client in pending:
            client.setblocking(False)
        while pending:
            _, writable, _ = select.select([], _lower(pending), [], seconds)
            if not writable:
                break
            for client in writable:
                try:
                    taken[client] += client.send(memoryview(data)[taken[client] :])
                except OSError:
                    pending.discard(client)
                if taken[client] == len(data):
                    pending.discard(client)
        for client in self.open:
            client.settimeout(_SECONDS)
        return [*taken.values()]


def _lower(clients: set[socket.socket]) -> Sequence[socket.socket]:
    return [client for client in clients if client.fileno() >= 0]


@dataclass
class Prober:
    """Asks for `/health` again and again, each time on a new connection.

    Attributes:
        slowest: the longest time in seconds.
        statuses: what was answered; 0 for a connection that was closed without an answer.
    """

    backend: FloodedBackend
    slowest: float = 0.0
    statuses: list[int] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        """Begin."""
        self._thread = threading.Thread(target=self._probe, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End, after one more."""
        self._over.set()
        self._thread.join(2 * _SECONDS)
        assert not self._thread.is_alive()

    def _probe(self) -> None:
        last = False
        while not last:
            last = self._over.wait(0.02)
            began = time.monotonic()
            try:
                self.statuses.append(self.backend.ask("/health")[0])
            except OSError:
                self.statuses.append(0)
            self.slowest = max(self.slowest, time.monotonic() - began)
