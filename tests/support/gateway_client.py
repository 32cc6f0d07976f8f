"""Clients of a gateway: whole requests, and the bytes of requests that no HTTP client would send."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pydantic import SecretStr

from isabella.config.gateway_address import state_file
from isabella.config.settings import Settings
from isabella.errors import ConfigurationError
from isabella.gateway.app import TOKEN_HEADER, GatewayLimits
from isabella.gateway.server import FindLetta, GatewayServer, publish
from isabella.letta.client import Connection
from isabella.practice.overlay import ConfigSnapshot
from isabella.practice.server import listen

_SECONDS = 30.0
TOKEN = "a-token-for-the-gateway"


async def no_letta() -> Connection:
    """What finds no Letta."""
    raise ConfigurationError("There is no Letta here.")


@dataclass(frozen=True)
class Reply:
    """A reply; `whole` is whether its end came."""

    status: int
    headers: dict[str, str]
    body: bytes
    whole: bool = True

    @property
    def error(self) -> dict[str, Any]:
        """The error in OpenAI's shape."""
        return dict(json.loads(self.body)["error"])


class RawClient:
    """A connection to the gateway."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=_SECONDS)

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Send bytes."""
        self.socket.sendall(data)

    def send_until_closed(self, data: bytes) -> None:
        """Send bytes again and again until the gateway closes the connection; fails if it takes nothing for 30 s."""
        try:
            while True:
                self.socket.sendall(data)
        except ConnectionError:
            pass

    def read(self) -> Reply:
        """Read a reply.

        Raises:
            http.client.HTTPException: there is none.
            OSError: the connection is broken, or there is none within 30 s.
        """
        response = http.client.HTTPResponse(self.socket)
        response.begin()
        headers = {name.lower(): value for name, value in response.getheaders()}
        try:
            return Reply(response.status, headers, response.read())
        except http.client.IncompleteRead as error:
            return Reply(response.status, headers, error.partial, whole=False)

    def read_start(self) -> bytes:
        """Read the first bytes that come."""
        return self.socket.recv(65536)

    def until_closed(self) -> bool:
        """Wait until the gateway closes the connection; return whether it does within 30 s."""
        try:
            while self.socket.recv(65536):
                pass
        except TimeoutError:
            return False
        except OSError:
            pass
        return True


def head(
    path: str,
    key: str | None,
    *,
    method: str = "POST",
    length: int | None = None,
    fields: tuple[str, ...] = (),
) -> bytes:
    """Return the head of a request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: gateway", "Content-Type: application/json", *fields]
    lines += [] if key is None else [f"Authorization: Bearer {key}"]
    lines += [] if length is None else [f"Content-Length: {length}"]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


@dataclass
class Served:
    """A gateway that serves in a thread.

    Attributes:
        server: the gateway.
        port: its port.
    """

    server: GatewayServer
    port: int
    thread: threading.Thread = field(repr=False)

    def ask(
        self,
        path: str,
        key: str | None,
        body: bytes | None = None,
        *,
        method: str = "POST",
        fields: tuple[str, ...] = (),
    ) -> Reply:
        """Send a request and read the reply."""
        length = None if body is None else len(body)
        with RawClient(self.port) as client:
            client.send(head(path, key, method=method, length=length, fields=fields) + (body or b""))
            return client.read()

    def control(self, method: str, path: str, token: str | None = TOKEN) -> Reply:
        """Ask the control API."""
        fields = () if token is None else (f"{TOKEN_HEADER}: {token}",)
        return self.ask(path, None, method=method, fields=fields)

    def traffic(self) -> dict[str, Any]:
        """The traffic as the control API tells it."""
        return dict(json.loads(self.control("GET", "/control/traffic").body))


@contextmanager
def served_gateway(
    settings: Settings, *, find: FindLetta = no_letta, limits: GatewayLimits | None = None
) -> Iterator[Served]:
    """A gateway in a thread."""
    listener, token, folder = listen(0), SecretStr(TOKEN), state_file(settings.home).parent
    port = int(listener.getsockname()[1])
    publish(folder, port, token)
    server = GatewayServer(ConfigSnapshot.of(settings), listener, token, folder, find=find, limits=limits)
    thread = threading.Thread(target=server.run, name="gateway", daemon=True)
    thread.start()
    try:
        yield Served(server, port, thread)
    finally:
        server.stop()
        thread.join(20)
        assert not thread.is_alive()


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Wait until something is so.

    Raises:
        TimeoutError: it is not so within 30 s.
    """
    deadline = time.monotonic() + _SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.02)
