"""Ports on loopback: free ones, and the same ones again."""

from __future__ import annotations

import errno
import json
import socket
from collections.abc import Collection
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

from isabella.system.files import write_private

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Ports:
    """The ports of one instance."""

    letta: int = 8283
    postgres: int = 5433


def base_url(port: int) -> str:
    """The address of a server that listens on this port of loopback."""
    return f"http://{LOOPBACK}:{port}"


def is_free(port: int) -> bool:
    """Whether a server could listen on this port of loopback right now."""
    with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as attempt:
        # As servers do it, so that connections which are only fading out do not count.
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            attempt.bind((LOOPBACK, port))
            attempt.listen(1)
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
            raise
    return True


def choose(preferred: int, *, avoid: Collection[int] = ()) -> int:
    """The preferred port if it is free, otherwise one that the system picks.

    Args:
        preferred: the port to have if possible.
        avoid: ports that others count on, whether or not they listen now.
    """
    if preferred not in avoid and is_free(preferred):
        return preferred
    while True:
        with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as attempt:
            attempt.bind((LOOPBACK, 0))
            found: int = attempt.getsockname()[1]
        if found not in avoid:
            return found


def save_ports(path: Path, ports: Ports) -> None:
    """Write down the ports of an instance."""
    write_private(path, json.dumps(asdict(ports)))


def load_ports(path: Path) -> Ports | None:
    """The ports written down at `path`; None where there are none or the file is damaged."""
    try:
        found = json.loads(path.read_text())
        return Ports(letta=int(found["letta"]), postgres=int(found["postgres"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
