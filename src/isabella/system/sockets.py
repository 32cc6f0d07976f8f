"""Listening sockets, and how many files a process may open."""

from __future__ import annotations

import errno
import os
import resource
import socket
from contextlib import suppress

#: The errors of `accept` if the process or the system is short of descriptors or memory.
SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

_MOST_FILES = 10_000
_ANSWER_SECONDS = 1.0
#: Connections that are accepted in a row.
ROW = 4


class ListeningSocket(socket.socket):
    """A listening socket for asyncio, under a flood.

    asyncio accepts as many connections in a row as there are, and reads none meanwhile. Here it accepts a few, so
    that a request that has arrived is read before its connection is closed in favour of later ones.

    If no descriptor is left, asyncio would try again and again, and log each time. Here the connection is closed at
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

    A port that a process of this user keeps with `kept_port` can be used if nobody listens on it.

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
