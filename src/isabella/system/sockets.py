"""Listening sockets, ports for them, and how many files a process may open."""

from __future__ import annotations

import errno
import os
import random
import resource
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

#: The errors of `accept` if the process or the system is short of descriptors or memory.
SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

_MOST_FILES = 10_000
_ANSWER_SECONDS = 1.0
#: Connections that are accepted in a row.
ROW = 4

# From linux/netlink.h, linux/sock_diag.h and netinet/tcp.h.
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLM_F_REQUEST, _NLM_F_DUMP = 0x1, 0x300
_TCP_LISTEN = 10
_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_REQUEST = struct.Struct("=BBBxI")  # inet_diag_req_v2 up to the id: family, protocol, extensions, states
_ID = struct.Struct("!HH16s28x")  # inet_diag_sockid: port, port of the peer, address, and what is not used here
_ANSWER = struct.Struct(f"=4x{_ID.size}x16xI")  # inet_diag_msg: the inode

_RANGE_FILE = Path("/proc/sys/net/ipv4/ip_local_port_range")
#: The ranges of Linux and macOS together.
_USUAL_RANGE = range(32768, 65536)
#: Ports that need no privilege, without the lowest ones, which other servers are known for.
_CANDIDATES = range(10_000, 65_536)


class ListeningSocket(socket.socket):
    """A listening socket for asyncio, under a flood.

    asyncio accepts as many connections in a row as there are, and reads none meanwhile. Here it accepts a few, so
    that a request that has arrived is read before its connection is closed in favour of later ones.

    If no descriptor is left, asyncio would retry continuously and log each time. Here the connection is closed at
    once, by means of a descriptor that is kept in reserve.
    """

    _spare: int | None = None
    _told = False
    _accepted = 0

    def accept(self) -> tuple[socket.socket, object]:
        """Accept a connection.

        Raises:
            BlockingIOError: there is none, it was closed, or enough of them were accepted in a row.
            OSError: it cannot even be closed; every other time, because the event loop waits a second after it.
        """
        try:
            if self._spare is None:
                self._spare = os.open(os.devnull, os.O_RDONLY)
            self._accepted = (self._accepted + 1) % (ROW + 1)
            if self._accepted:
                return super().accept()
        except OSError as error:
            if error.errno not in SHORTAGES:
                raise
            self._told = not self._told and not self._close_next()
            if self._told:
                raise
        raise BlockingIOError

    def close(self) -> None:
        """Close the socket."""
        self._free_spare()
        super().close()

    def _close_next(self) -> bool:
        """Close the next connection by means of the spare descriptor; return whether that was possible."""
        self._free_spare()
        try:
            super().accept()[0].close()
            self._spare = os.open(os.devnull, os.O_RDONLY)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return True

    def _free_spare(self) -> None:
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None


def listening_socket(host: str, port: int) -> ListeningSocket:
    """Return a socket that listens on a port of an address; with port 0 the system chooses the port.

    A port that a process of this user keeps with `kept_port` can be used if no process listens on it.

    Raises:
        OSError: the port or the address cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's algorithm off only if the protocol is named; with it, each answer waits 40 ms.
    listener = ListeningSocket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError:
            if _is_listened_on(family, host, port):
                raise
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind((host, port))
        # Set only now, so that two servers never share a port: binding has failed if another one listens.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        # A port that is only bound is still open to another program that listens first.
        listener.listen(512)
    except OSError:
        listener.close()
        raise
    return listener


def kept_port(host: str, port: int) -> socket.socket | None:
    """Return a socket that keeps a port for this user's programs, also while none listens; None if it cannot.

    It accepts no connections. A process that sends secrets to a port inherits it: as long as that process lives, no
    other user can listen there.
    """
    kept = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        kept.bind((host, port))
    except OSError:
        kept.close()
        return None
    return kept


def listening_sockets(port: int, *, ipv6: bool) -> list[tuple[str, int]]:
    """Return address and inode of each socket of this machine that listens on a TCP port, as Linux reports them.

    Linux returns these sockets alone, so that this takes as long however many connections there are.

    Raises:
        OSError: the system is not Linux, or does not allow the question.
    """
    if not hasattr(socket, "AF_NETLINK"):
        raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
    family = socket.AF_INET6 if ipv6 else socket.AF_INET
    request = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 1 << _TCP_LISTEN) + _ID.pack(port, 0, bytes(16))
    header = _HEADER.pack(_HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST | _NLM_F_DUMP, 1, 0)
    found: list[tuple[str, int]] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as link:
        link.settimeout(_ANSWER_SECONDS)
        link.sendall(header + request)
        while True:
            answer = link.recv(1 << 16)
            while len(answer) >= _HEADER.size:
                size, kind, *_ = _HEADER.unpack_from(answer)
                if kind == _NLMSG_DONE:
                    return found
                if kind == _NLMSG_ERROR or size < _HEADER.size + _ANSWER.size:
                    raise OSError(errno.EPROTO, os.strerror(errno.EPROTO))
                listens_on, _, address = _ID.unpack_from(answer, _HEADER.size + 4)
                (inode,) = _ANSWER.unpack_from(answer, _HEADER.size)
                if listens_on == port:
                    found.append((socket.inet_ntop(family, address[: 16 if ipv6 else 4]), inode))
                answer = answer[(size + 3) & ~3 :]


def stable_ports() -> Iterator[int]:
    """Yield, in random order, the ports that the system gives to no outgoing connection.

    A server whose port is in the range of outgoing connections may find it taken after a restart.
    """
    outgoing = _outgoing_ports()
    ports = [port for port in _CANDIDATES if port not in outgoing]
    yield from random.sample(ports, len(ports))


def _outgoing_ports() -> range:
    try:
        first, last = map(int, _RANGE_FILE.read_text().split())
    except (OSError, ValueError):
        return _USUAL_RANGE
    return range(first, last + 1)


def _is_listened_on(family: int, host: str, port: int) -> bool:
    with socket.socket(family, socket.SOCK_STREAM) as attempt:
        attempt.settimeout(_ANSWER_SECONDS)
        try:
            attempt.connect((host, port))
        except ConnectionRefusedError:
            return False
        except OSError:
            return True
    return True


def allow_files() -> int:
    """Raise the limit of open files as far as the system allows: each stream has two connections. Return it."""
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if most == resource.RLIM_INFINITY else min(most, _MOST_FILES)
    if allowed != resource.RLIM_INFINITY and allowed < wanted:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _MOST_FILES if allowed == resource.RLIM_INFINITY else allowed
