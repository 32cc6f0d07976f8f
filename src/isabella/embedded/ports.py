"""The ports of an instance: the last ones, unless another program or instance has them."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Collection
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

from isabella.embedded import file_locks
from isabella.embedded.instance import LOOPBACK, InstancePaths
from isabella.embedded.progress import Progress, Step
from isabella.errors import StartFailed
from isabella.system import state
from isabella.system.sockets import stable_ports

_ATTEMPTS = 3

Service = Literal["letta", "postgres"]
Started = TypeVar("Started")


@dataclass(frozen=True)
class Ports:
    """The ports of one instance."""

    letta: int = 8283
    postgres: int = 5433


def start_on_port(
    paths: InstancePaths, service: Service, start: Callable[[int], Started], progress: Progress, **known: int
) -> Started:
    """Start a service on its port, and on another one if another program takes the port before the service does.

    `known` is the port of the other service, if that runs.
    """
    for _ in range(_ATTEMPTS - 1):
        port = _remembered_port(paths, service, progress, **known)
        try:
            return start(port)
        except StartFailed as error:
            # The other program may have released the port again.
            if "address already in use" not in error.what.lower() and is_port_free(port):
                raise
    return start(_remembered_port(paths, service, progress, **known))


def _remembered_port(paths: InstancePaths, service: Service, progress: Progress, **known: int) -> int:
    """Return the last port of a service if it is free, else another one; either is remembered for the next start."""
    with file_locks.hold(paths.home, paths.ports_lock, progress):
        siblings = [ports for path in paths.sibling_ports_files() if (ports := load_ports(path))]
        avoid = {port for ports in siblings for port in (ports.letta, ports.postgres)}
        last = load_ports(paths.ports_file)
        ports = replace(last or Ports(), **known)
        preferred: int = getattr(ports, service)
        port = choose_port(preferred, avoid=avoid)
        chosen = replace(ports, **{service: port})
        if chosen != last:
            save_ports(paths.ports_file, chosen)
    if port != preferred:
        name = {"letta": "Letta", "postgres": "Postgres"}[service]
        progress(Step(service, "note", f"port {preferred} is not free: {name} gets {port}"))
    return port


def is_port_free(port: int) -> bool:
    """Return whether a server could listen on this port of loopback now."""
    with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as attempt:
        # As servers set it, so that connections in TIME_WAIT do not count.
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            attempt.bind((LOOPBACK, port))
            attempt.listen(1)
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
            raise
    return True


def choose_port(preferred: int, *, avoid: Collection[int] = ()) -> int:
    """Return the preferred port if it is free, otherwise one that is; none of those to avoid."""
    if preferred not in avoid and is_port_free(preferred):
        return preferred
    for port in stable_ports():
        if port not in avoid and is_port_free(port):
            return port
    # Every port may be given to outgoing connections here.
    with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as attempt:
        attempt.bind((LOOPBACK, 0))
        return int(attempt.getsockname()[1])


def save_ports(path: Path, ports: Ports) -> None:
    """Write the ports of an instance to a file."""
    state.save(path, asdict(ports))


def load_ports(path: Path) -> Ports | None:
    """Return the ports in a file; None if the file is missing or damaged."""
    record = state.load(path)
    letta, postgres = state.port_in(record, "letta"), state.port_in(record, "postgres")
    if letta is None or postgres is None:
        if record:
            state.report_fields(path)
        return None
    return Ports(letta, postgres)
