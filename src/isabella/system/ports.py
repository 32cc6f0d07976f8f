"""Ports that stay free while the server that belongs there is away.

The system gives outgoing connections ports from a range of its own. A server whose port is in that range may find it
taken after a restart, so a port of Isabella's choice is outside of it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

_RANGE_FILE = Path("/proc/sys/net/ipv4/ip_local_port_range")
#: The ranges of Linux and macOS together.
_USUAL_RANGE = range(32768, 65536)
#: Ports that need no privilege, without the lowest ones, which other servers are known for.
_CANDIDATES = range(10_000, 65_536)


def stable_ports() -> Iterator[int]:
    """Yield, in random order, the ports that the system gives to no outgoing connection."""
    outgoing = _outgoing_ports()
    ports = [port for port in _CANDIDATES if port not in outgoing]
    yield from random.sample(ports, len(ports))


def _outgoing_ports() -> range:
    try:
        first, last = map(int, _RANGE_FILE.read_text().split())
    except (OSError, ValueError):
        return _USUAL_RANGE
    return range(first, last + 1)
