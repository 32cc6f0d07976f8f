"""Serving the gateway: by itself, or as the process that `gateway.process` starts."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import anyio
import uvicorn
from pydantic import SecretStr, TypeAdapter, ValidationError

from isabella.config.gateway_address import mark_file, state_file
from isabella.config.settings import Settings
from isabella.connect import connect
from isabella.errors import ConfigurationError
from isabella.gateway.app import Gateway, GatewayLimits
from isabella.gateway.keys import KeyRing
from isabella.gateway.refusals import error_body
from isabella.gateway.runs import RunMonitor
from isabella.gateway.traffic import OutcomeMark, Traffic, VendorTraffic
from isabella.letta.client import Connection
from isabella.practice.overlay import ConfigSnapshot
from isabella.system import processes, state, tracing
from isabella.system.http_server import KEEP_ALIVE_SECONDS, ConnectionLimits, Headers, http_protocol
from isabella.system.sockets import listening_socket
from isabella.system.urls import is_loopback

_SAVE_SECONDS = 10.0
_CONNECTION_SECONDS = 5.0
#: Finds the Letta; raises `IsabellaError` if there is none now.
FindLetta = Callable[[], Awaitable[Connection]]

_VENDORS = TypeAdapter(dict[str, VendorTraffic])


@dataclass(frozen=True)
class Tls:
    """A certificate and its private key, as files."""

    certificate: Path
    key: Path


class GatewayServer:
    """A gateway and what belongs to it, on a listening socket.

    Args:
        snapshot: the configuration.
        listener: the listening socket.
        token: the control token.
        folder: the folder in which the traffic is kept across a restart.
        find: finds the Letta; by default the one in the settings.
        tls: the certificate; None for plain HTTP.
        limits: the limits of a request.
    """

    def __init__(
        self,
        snapshot: ConfigSnapshot,
        listener: socket.socket,
        token: SecretStr,
        folder: Path,
        *,
        find: FindLetta | None = None,
        tls: Tls | None = None,
        limits: GatewayLimits | None = None,
    ) -> None:
        limits = limits or GatewayLimits()
        self._file = folder / "traffic.json"
        self._listener = listener
        self.traffic = Traffic(_load(self._file), OutcomeMark(mark_file(folder)))
        find = find or _Finder(snapshot)
        self._runs = RunMonitor(self.traffic, find)
        self._gateway = Gateway(KeyRing(snapshot, find), self.traffic, token, limits)
        self._server = uvicorn.Server(
            uvicorn.Config(
                self._gateway,
                http=http_protocol(ConnectionLimits(limits.head_seconds), _malformed),
                ws="none",
                lifespan="off",
                log_config=None,
                log_level=logging.CRITICAL,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=1,
                ssl_certfile=None if tls is None else str(tls.certificate),
                ssl_keyfile=None if tls is None else str(tls.key),
            )
        )

    def run(self) -> None:
        """Serve until a signal, or until `stop` is called."""
        try:
            with suppress(KeyboardInterrupt):
                anyio.run(self._serve)
        finally:
            _save(self.traffic, self._file)

    def stop(self) -> None:
        """Stop serving. It may be called from another thread."""
        self._server.should_exit = True

    async def _serve(self) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._runs.run)
            tasks.start_soon(_save_regularly, self.traffic, self._file)
            await self._server.serve(sockets=[self._listener])
            tasks.cancel_scope.cancel()
        await self._gateway.close()


def run_in_foreground(
    settings: Settings, host: str, port: int, tls: Tls | None, *, insecure: bool, say: Callable[[str], None]
) -> None:
    """Serve the gateway of this home until a signal, on an address that Letta reaches.

    Raises:
        ConfigurationError: the address cannot be used, or is one of the network and there is no TLS.
    """
    if not (is_loopback(host) or tls or insecure):
        raise ConfigurationError(
            f"{host} is an address of the network, and the vendors' keys would pass it in plaintext.",
            remedy="Give --tls-certificate and --tls-key, or --insecure if the network is private.",
        )
    tracing.configure("isabella-gateway", settings.sources.dotenv)
    folder = state_file(settings.home).parent
    try:
        listener = listening_socket(host, port)
    except OSError as error:
        raise ConfigurationError(
            f"The gateway cannot listen on port {port} of {host}: {error.strerror}.", remedy="Choose another --port."
        ) from None
    token = SecretStr(secrets.token_urlsafe(24))
    if is_loopback(host) and tls is None:
        publish(folder, port, token)
    scheme = "http" if tls is None else "https"
    say(f"The gateway listens at {scheme}://{f'[{host}]' if ':' in host else host}:{port}  (stop: Ctrl-C)")
    GatewayServer(ConfigSnapshot.of(settings), listener, token, folder, tls=tls).run()


def publish(folder: Path, port: int, token: SecretStr) -> None:
    """Record that this process is the gateway, so that Isabella's other processes on this machine find it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    state.save(folder / "state.json", {"port": port, "token": token.get_secret_value()})
    processes.save(folder / "process.json", processes.ChildProcess.of(os.getpid()))


def _malformed(what: str) -> tuple[bytes, Headers]:
    return error_body("malformed_request", f"Isabella's gateway: {what}")


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
    # A vendor's words may quote a prompt. A disk that is full costs history, and no request.
    kept = {name: asdict(replace(vendor, refused_message=None)) for name, vendor in traffic.vendors.items()}
    state.keep(file, kept)


def _load(file: Path) -> dict[str, VendorTraffic]:
    try:
        return _VENDORS.validate_python(state.load(file))
    except ValidationError:
        state.report_fields(file)
        return {}
