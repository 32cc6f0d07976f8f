"""Verification of the local process behind a port, before a token, a password or a message is sent there.

Any user of the machine may bind a port that a crash has left free. Each new connection to one of Isabella's servers
is therefore verified before the first byte is sent: the process that Isabella's home records as that server must
listen on the port both before and after the connection is made. It is then the process that accepted the connection,
and a connection that is kept open stays with it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import psutil

from isabella.errors import UnverifiedPeer
from isabella.system import processes
from isabella.system.processes import ChildProcess
from isabella.system.sockets import listening_sockets

_STARTED, _COMPLETE = "connection.connect_tcp.started", "connection.connect_tcp.complete"


@dataclass
class Peer:
    """One of Isabella's servers on this machine."""

    name: str  # its name in messages
    record: Path  # the file in Isabella's home that records its process
    remedy: str  # the remedy if another process listens in its place
    #: the process that was verified last; it is not verified before a connection again
    verified: ChildProcess | None = None

    def before(self, host: str, port: int) -> ChildProcess | None:
        """Return the recorded process if it listens there. Called before a connection is made."""
        process = processes.load(self.record)
        if process is None or process == self.verified or listens(process, host, port):
            return process
        return None

    def check(self, before: ChildProcess | None, host: str, port: int) -> None:
        """Verify a new connection, on which nothing was sent yet. `before` is what the method `before` returned."""
        if before is None or not listens(before, host, port):
            self.verified = None
            raise self._unverified(host, port)
        self.verified = before

    def _unverified(self, host: str, port: int) -> UnverifiedPeer:
        process = processes.load(self.record)
        if process is None:
            why = f"{self.record} does not name the process of {self.name}"
        elif listens(process, host, port):
            why = f"{self.name} began to listen only after the connection was made"
        elif process.is_running():
            why = f"{self.name} (process {process.pid}) does not listen there"
        else:
            why = f"{self.name} (process {process.pid}) has ended"
        return UnverifiedPeer(
            f"{_listener_name(port)} listens at {host}:{port}, and nothing was sent to it: {why}.", remedy=self.remedy
        )


def listens(process: ChildProcess, host: str, port: int) -> bool:
    """Return whether this process is alive and listens on this port of this address."""
    if not process.is_running():
        return False
    try:
        addresses = listening_addresses(process.pid, port, ipv6=":" in host)
    except (OSError, psutil.Error):
        return False
    return any(_covers(address, host) for address in addresses)


def listening_addresses(pid: int, port: int, *, ipv6: bool) -> list[str]:
    """Return the addresses at which a process listens on this port; raises `OSError` or `psutil.Error`."""
    try:
        found = listening_sockets(port, ipv6=ipv6)
    except OSError:
        # This reads all connections of the machine, which takes several milliseconds even if there are few.
        return [
            connection.laddr.ip
            for connection in psutil.Process(pid).net_connections(kind="tcp6" if ipv6 else "tcp4")
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
        ]
    if not found:
        return []
    held = set()
    for descriptor in Path("/proc", str(pid), "fd").iterdir():
        # The process may close it meanwhile.
        with suppress(FileNotFoundError):
            held.add(str(descriptor.readlink()))
    return [address for address, inode in found if f"socket:[{inode}]" in held]


def holds_connection(process: ChildProcess, local: tuple[str, int], remote: tuple[str, int]) -> bool:
    """Return whether this process has a connection between these two addresses of this machine."""
    if not process.is_running():
        return False
    try:
        connections = psutil.Process(process.pid).net_connections(kind="tcp")
    except (OSError, psutil.Error):
        return False
    return any(tuple(one.laddr) == local and tuple(one.raddr) == remote for one in connections)


def hooks(peer: Peer | None) -> dict[str, list[Callable[[Any], Any]]]:
    """Return the event hooks of an HTTP client for this server; empty if there is no peer to verify."""
    if peer is None:
        return {}

    def on_request(request: Any) -> None:
        request.extensions["trace"] = _Verification(peer).on_event

    return {"request": [on_request]}


def async_hooks(peer: Peer | None) -> dict[str, list[Callable[[Any], Awaitable[None]]]]:
    """Return the same event hooks for an asynchronous client."""
    if peer is None:
        return {}

    async def on_request(request: Any) -> None:
        request.extensions["trace"] = _Verification(peer).on_event_async

    return {"request": [on_request]}


@dataclass
class _Verification:
    """Verifies the connection of one request, if a new connection is made for it."""

    _peer: Peer
    _before: ChildProcess | None = None

    def on_event(self, event: str, info: dict[str, Any]) -> None:
        """Handle a trace event of the connection pool; raises `UnverifiedPeer`."""
        try:
            self._check(event, info)
        except UnverifiedPeer:
            info["return_value"].close()
            raise

    async def on_event_async(self, event: str, info: dict[str, Any]) -> None:
        """Handle a trace event of an asynchronous connection pool; raises `UnverifiedPeer`."""
        try:
            self._check(event, info)
        except UnverifiedPeer:
            with anyio.CancelScope(shield=True):
                await info["return_value"].aclose()
            raise

    def _check(self, event: str, info: dict[str, Any]) -> None:
        if event == _STARTED:
            self._before = self._peer.before(info["host"], info["port"])
        elif event == _COMPLETE:
            self._peer.check(self._before, *info["return_value"].get_extra_info("server_addr")[:2])


def _covers(listening: str, host: str) -> bool:
    one, other = ipaddress.ip_address(listening.partition("%")[0]), ipaddress.ip_address(host.partition("%")[0])
    return one == other or one.is_unspecified


def _listener_name(port: int) -> str:
    """Return the process that listens on a port, as far as the system reveals it."""
    try:
        pids = [
            connection.pid
            for connection in psutil.net_connections(kind="tcp")
            if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port
        ]
        pid = next((pid for pid in pids if pid is not None), None)
        return "Another process" if pid is None else f"Process {pid} ({psutil.Process(pid).name()})"
    except psutil.Error:
        return "Another process"
