"""Who listens on a port of ours: known before a token, a password or a message is sent there.

Any user of the machine may bind a port that a crash has left free. So each new connection to a server of ours is
verified before the first byte is sent: the process that our home names as that server listened there before the
connection was made, and listens there still. Then it is the one that has accepted the connection; whatever happens
later, a connection that is kept open stays with it.
"""

from __future__ import annotations

import ipaddress
import os
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import psutil

from isabella.errors import UnverifiedPeer
from isabella.system import processes
from isabella.system.processes import ChildProcess

_STARTED, _COMPLETE = "connection.connect_tcp.started", "connection.connect_tcp.complete"
#: The state of a listening socket in `/proc/net/tcp`.
_LISTEN = "0A"


@dataclass
class Peer:
    """A server of ours on this machine.

    Attributes:
        name: what it is, for messages.
        record: the file of our home that names its process.
        remedy: what to do where somebody else listens in its place.
        verified: the process that was seen to listen last; it need not be looked at before a connection again.
    """

    name: str
    record: Path
    remedy: str
    verified: ChildProcess | None = None

    def before(self, host: str, port: int) -> ChildProcess | None:
        """The process that the home names, if it listens there; to be asked before connecting."""
        process = processes.load(self.record)
        if process is None or process == self.verified or listens(process, host, port):
            return process
        return None

    def check(self, before: ChildProcess | None, host: str, port: int) -> None:
        """Verify a connection that was just made; nothing has been sent on it yet.

        Args:
            before: what `before` gave.
            host: the address that the connection leads to.
            port: its port.

        Raises:
            UnverifiedPeer: another process may have accepted it.
        """
        if before is None or not listens(before, host, port):
            self.verified = None
            raise self._unverified(host, port)
        self.verified = before

    def _unverified(self, host: str, port: int) -> UnverifiedPeer:
        process = processes.load(self.record)
        if process is None:
            why = f"{self.record} does not say which process {self.name} is"
        elif listens(process, host, port):
            why = f"{self.name} has begun to listen just now"
        elif process.is_running():
            why = f"{self.name} (process {process.pid}) does not listen there"
        else:
            why = f"{self.name} (process {process.pid}) has ended"
        return UnverifiedPeer(
            f"{_holder(port)} listens at {host}:{port}, and nothing was sent to it: {why}.", remedy=self.remedy
        )


def listens(process: ChildProcess, host: str, port: int) -> bool:
    """Whether this very process is alive and listens on this port of this address."""
    if not process.is_running():
        return False
    try:
        table = Path("/proc/net", "tcp6" if ":" in host else "tcp")
        if sys.platform == "linux" and table.exists():
            return _holds(process.pid, _listening_inodes(table, host, port))
        found = psutil.Process(process.pid).net_connections(kind="tcp6" if ":" in host else "tcp4")
    except (OSError, psutil.Error):
        return False
    return any(
        one.status == psutil.CONN_LISTEN and one.laddr.port == port and _covers(one.laddr.ip, host) for one in found
    )


def _listening_inodes(table: Path, host: str, port: int) -> set[str]:
    """The sockets that listen there. The kernel lists these first; all others, often thousands, are not read."""
    found: set[str] = set()
    rest = b""
    descriptor = os.open(table, os.O_RDONLY)
    try:
        while chunk := os.read(descriptor, 4096):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                _, local, _, state, *fields = line.decode().split()
                if state == "st":
                    continue
                if state != _LISTEN:
                    return found
                address, _, number = local.partition(":")
                if int(number, 16) == port and _covers(_address(address), host):
                    found.add(fields[5])
    finally:
        os.close(descriptor)
    return found


def _address(text: str) -> str:
    """An address as the kernel writes it: words of 32 bits in the byte order of the machine."""
    words = (bytes.fromhex(text[at : at + 8]) for at in range(0, len(text), 8))
    return str(ipaddress.ip_address(b"".join(word[::-1] if sys.byteorder == "little" else word for word in words)))


def _holds(pid: int, inodes: set[str]) -> bool:
    """Whether one of these sockets is open in a process."""
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for descriptor in Path(f"/proc/{pid}/fd").iterdir() if wanted else ():
        # It may have been closed meanwhile.
        with suppress(FileNotFoundError):
            if str(descriptor.readlink()) in wanted:
                return True
    return False


def hooks(peer: Peer | None) -> dict[str, list[Callable[[Any], Any]]]:
    """Event hooks of an HTTP client that speaks to this server only; none where there is nothing to verify."""
    return {} if peer is None else {"request": [partial(_trace, peer)]}


def async_hooks(peer: Peer | None) -> dict[str, list[Callable[[Any], Awaitable[None]]]]:
    """The same for an asynchronous client."""

    async def hook(request: Any) -> None:
        _trace(peer, request, asynchronous=True)

    return {} if peer is None else {"request": [hook]}


def _trace(peer: Peer | None, request: Any, *, asynchronous: bool = False) -> None:
    if peer is not None:
        connecting = _Connecting(peer)
        request.extensions["trace"] = connecting.see_async if asynchronous else connecting.see


class _Connecting:
    """Verifies the connection that is made for one request, if one is made for it."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._before: ChildProcess | None = None

    def see(self, event: str, info: dict[str, Any]) -> None:
        """Take in what the connection pool tells; raises `UnverifiedPeer`."""
        if event == _STARTED:
            self._before = self._peer.before(info["host"], info["port"])
        elif event == _COMPLETE:
            stream = info["return_value"]
            try:
                self._peer.check(self._before, *stream.get_extra_info("server_addr")[:2])
            except UnverifiedPeer:
                stream.close()
                raise

    async def see_async(self, event: str, info: dict[str, Any]) -> None:
        """The same for an asynchronous client."""
        if event == _COMPLETE:
            stream = info["return_value"]
            try:
                self._peer.check(self._before, *stream.get_extra_info("server_addr")[:2])
            except UnverifiedPeer:
                with anyio.CancelScope(shield=True):
                    await stream.aclose()
                raise
        else:
            self.see(event, info)


def _covers(listening: str, host: str) -> bool:
    one, other = ipaddress.ip_address(listening.partition("%")[0]), ipaddress.ip_address(host.partition("%")[0])
    return one == other or one.is_unspecified


def _holder(port: int) -> str:
    """Who listens on a port, as far as the system tells us."""
    try:
        found = [
            one
            for one in psutil.net_connections(kind="tcp")
            if one.status == psutil.CONN_LISTEN and one.laddr and one.laddr.port == port
        ]
        pid = next((one.pid for one in found if one.pid is not None), None)
        return "Another process" if pid is None else f"Process {pid} ({psutil.Process(pid).name()})"
    except psutil.Error:
        return "Another process"
