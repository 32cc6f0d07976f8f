"""A process of somebody else's that listens where a server of ours should, and keeps every byte that it is sent."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from isabella.system.processes import ChildProcess, save

#: What it answers to whatever it is asked: a healthy Letta.
_BODY = json.dumps({"version": "0.16.8", "status": "ok"})
_ANSWER = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(_BODY)}\r\n\r\n{_BODY}".encode()
_SERVER = """
import socket, sys, threading
listener = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET)
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind((sys.argv[1], int(sys.argv[2])))
listener.listen()
print(listener.getsockname()[1], flush=True)
def serve(connection):
    while connection.recv(65536):
        connection.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\n{}")
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""


class Impostor:
    """What the other process was sent."""

    def __init__(self, listener: socket.socket, answer: bytes) -> None:
        self._listener = listener
        self._answer = answer
        self.address: tuple[str, int] = listener.getsockname()[:2]
        self.port = self.address[1]
        self._heard: list[bytes] = []
        self._threads: list[threading.Thread] = []
        self._last: object = None
        self._accepting = threading.Thread(target=self._accept, name="impostor", daemon=True)
        self._accepting.start()

    @property
    def heard(self) -> list[bytes]:
        """What was sent on each connection that was made so far, once it is over; nobody is accepted after that."""
        with socket.socket(self._listener.family) as last:
            last.bind((self.address[0], 0))
            # Connections are accepted in order, so all before this one have been.
            self._last = last.getsockname()
            last.connect(self.address)
            self._accepting.join(30)
        for thread in self._threads:
            thread.join(30)
        assert not any(thread.is_alive() for thread in (self._accepting, *self._threads)), (
            "a connection is still open"
        )
        return self._heard

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, client = self._listener.accept()
                if client == self._last:
                    connection.close()
                    return
                thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
                thread.start()
                self._threads.append(thread)

    def _serve(self, connection: socket.socket) -> None:
        heard = b""
        with suppress(OSError), connection:
            while said := connection.recv(65536):
                heard += said
                connection.sendall(self._answer)
        self._heard.append(heard)


@contextmanager
def impostor(port: int = 0, host: str = "127.0.0.1", answer: bytes = _ANSWER) -> Iterator[Impostor]:
    """Somebody who listens there, and answers this to whatever it is sent; by default on any free port."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    with listener:
        listener.bind((host, port))
        listener.listen()
        yield Impostor(listener, answer)
        listener.shutdown(socket.SHUT_RDWR)


@contextmanager
def server(record: Path, host: str = "127.0.0.1", port: int = 0) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A server of ours as a process of its own, written down in a record: the process, and its port."""
    argv = [sys.executable, "-c", _SERVER, host, str(port)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        listens_at = int(process.stdout.readline())
        save(record, ChildProcess.of(process.pid))
        yield process, listens_at
        process.kill()
