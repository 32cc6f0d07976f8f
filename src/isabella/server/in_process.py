"""A backend for this process alone: for a chat where none runs, through the same engine."""

from __future__ import annotations

import logging
import secrets
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import anyio
import uvicorn
from pydantic import SecretStr

from isabella.config.settings import Settings
from isabella.errors import IsabellaError
from isabella.letta.connection import Connection
from isabella.locks.provider_lock import open_locks
from isabella.server.app import create_app
from isabella.server.readiness import Phase, Readiness
from isabella.server.runtime import open_agents, open_turns

_HOST = "127.0.0.1"
_STOP_SECONDS = 15.0


@dataclass(frozen=True)
class InProcessBackend:
    """Where it listens, and what it asks for."""

    address: str
    token: SecretStr


@contextmanager
def in_process_backend(settings: Settings, connection: Connection) -> Iterator[InProcessBackend]:
    """Serve agents and turns on a loopback port, in a thread, with a token that nobody else knows.

    Providers are left as they are.

    Raises:
        IsabellaError: Letta cannot be reached, or the agents' file is malformed.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind((_HOST, 0))
    address = f"http://{_HOST}:{listener.getsockname()[1]}"
    token = SecretStr(secrets.token_urlsafe(24))
    up = threading.Event()
    failed: list[BaseException] = []

    async def start(readiness: Readiness) -> None:
        try:
            # Vectors need an address that stays, so this one makes none.
            async with (
                open_locks(settings, connection) as locks,
                open_agents(app, settings, connection, None) as agent_service,
                open_turns(app, agent_service, locks),
            ):
                readiness.phase = Phase.DEGRADED
                up.set()
                await anyio.sleep_forever()
        except IsabellaError as error:
            failed.append(error)
        finally:
            up.set()

    app = create_app(start, token=token)
    config = uvicorn.Config(app, log_config=None, log_level=logging.WARNING, access_log=False, ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],), name="private-backend", daemon=True)
    thread.start()
    try:
        up.wait()
        if failed:
            raise failed[0]
        yield InProcessBackend(address, token)
    finally:
        server.should_exit = True
        thread.join(_STOP_SECONDS)
