"""A port that a process keeps: no other user can listen on it while the server behind it is away."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from isabella.system.sockets import kept_port, listening_socket

HOST = "127.0.0.1"
_TAKE = """
import os, socket, sys
user, host, port, *options = sys.argv[1:]
if int(user) != os.geteuid():
    os.setuid(int(user))
taker = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
for option in options:
    taker.setsockopt(socket.SOL_SOCKET, getattr(socket, option), 1)
try:
    taker.bind((host, int(port)))
    taker.listen()
except OSError as error:
    sys.exit(error.strerror)
"""


@pytest.fixture
def port() -> Iterator[int]:
    """A port on which a server listened that has ended; a process that goes on keeps it."""
    with listening_socket(HOST, 0) as listener:
        number = int(listener.getsockname()[1])
        kept = kept_port(HOST, number)
        assert kept is not None
        keeper = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[kept.fileno()])
        kept.close()
        with pytest.raises(OSError, match="in use"):
            listening_socket(HOST, number)
    yield number
    keeper.communicate(b"\n")


def take(port: int, user: int, host: str, *options: str) -> str:
    """What the system says to a program of a user that wants to listen there; nothing if it can."""
    command = [sys.executable, "-c", _TAKE, str(user), host, str(port), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False).stderr.strip()


@pytest.mark.parametrize("host", [HOST, "0.0.0.0", "::"])
def test_nobody_else_takes_a_kept_port(port: int, host: str) -> None:
    """A connection is refused, and so is another program; one of another user is, whatever options it sets."""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((HOST, port))
    assert take(port, os.geteuid(), host, "SO_REUSEADDR") == "Address already in use"
    if os.geteuid() == 0:
        assert take(port, 65534, host, "SO_REUSEADDR", "SO_REUSEPORT") == "Address already in use"


def test_a_server_of_ours_takes_it_again(port: int) -> None:
    """It listens alone: all connections are its own, and a second one is refused the port."""
    with listening_socket(HOST, port) as listener:
        for _ in range(20):
            with socket.create_connection((HOST, port)) as client:
                accepted, address = socket.socket.accept(listener)
                with accepted:
                    assert address == client.getsockname()
        with pytest.raises(OSError, match="in use"):
            listening_socket(HOST, port)


def test_a_port_of_somebody_else_is_not_kept() -> None:
    """Where another program listens, there is nothing to keep."""
    with socket.create_server((HOST, 0)) as listener:
        assert kept_port(HOST, listener.getsockname()[1]) is None
