"""Serving the gateway: by itself, or as the process that `gateway.process` starts."""

from __future__ import annotations

import json
import logging
import socket
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import anyio
import uvicorn
from pydantic import SecretStr, TypeAdapter, ValidationError

from isabella.connect import connect
from isabella.gateway.app import Gateway
from isabella.gateway.keys import KeyRing
from isabella.gateway.runs import RunMonitor
from isabella.gateway.traffic import Traffic, VendorTraffic
from isabella.letta.connection import Connection
from isabella.practice.overlay import ConfigSnapshot
from isabella.system.files import write_private

_SAVE_SECONDS = 10.0
_CONNECTION_SECONDS = 5.0
_VENDORS = TypeAdapter(dict[str, VendorTraffic])


@dataclass(frozen=True)
class Tls:
    """A certificate and its private key, as files."""

    certificate: Path
    key: Path


def serve(
    snapshot: ConfigSnapshot, listener: socket.socket, token: SecretStr, folder: Path, tls: Tls | None = None
) -> None:
    """Serve until a signal.

    Args:
        snapshot: the configuration.
        listener: the listening socket.
        token: the control token.
        folder: the folder in which the traffic is kept across a restart.
        tls: the certificate; None for plain HTTP.
    """
    find = _Finder(snapshot)
    file = folder / "traffic.json"
    traffic = Traffic(_load(file))
    gateway = Gateway(KeyRing(snapshot, find), traffic, token)
    config = uvicorn.Config(
        gateway,
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level=logging.CRITICAL,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        # Letta's clients keep their connections for a while; a request on one that is being closed would fail.
        timeout_keep_alive=75,
        timeout_graceful_shutdown=1,
        ssl_certfile=None if tls is None else str(tls.certificate),
        ssl_keyfile=None if tls is None else str(tls.key),
    )
    server = uvicorn.Server(config)

    async def run() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(RunMonitor(traffic, find).run)
            tasks.start_soon(_save_regularly, traffic, file)
            await server.serve(sockets=[listener])
            tasks.cancel_scope.cancel()
        await gateway.close()
        _save(traffic, file)

    with suppress(KeyboardInterrupt):
        anyio.run(run)


class _Finder:
    """Finds the Letta of a configuration, and remembers it for a few seconds."""

    def __init__(self, snapshot: ConfigSnapshot) -> None:
        self._settings = snapshot.settings
        self._found: Connection | None = None
        self._until = 0.0
        self._lock = anyio.Lock()

    async def __call__(self) -> Connection:
        """Return the connection. Raises `IsabellaError` if there is no Letta now."""
        async with self._lock:
            if self._found is None or time.monotonic() > self._until:
                self._found = await connect(self._settings)
                self._until = time.monotonic() + _CONNECTION_SECONDS
            return self._found


async def _save_regularly(traffic: Traffic, file: Path) -> None:
    while True:
        await anyio.sleep(_SAVE_SECONDS)
        await anyio.to_thread.run_sync(_save, traffic, file)


def _save(traffic: Traffic, file: Path) -> None:
    # A disk that is full costs history, and no request.
    with suppress(OSError):
        write_private(file, json.dumps({name: asdict(vendor) for name, vendor in traffic.vendors.items()}))


def _load(file: Path) -> dict[str, VendorTraffic]:
    try:
        return _VENDORS.validate_json(file.read_bytes())
    except (OSError, ValidationError):
        return {}
