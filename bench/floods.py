"""The backend under floods: how long `/health` takes, and how much memory it needs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import anyio.to_thread

from bench.results import Results
from bench.setup import Servers
from isabella.system.sockets import allow_files
from tests.support.flood import TOKEN, Clients, FloodedBackend, Prober, flooded_backend, head

_MIB = 1024 * 1024
_BEARER = f"Authorization: Bearer {TOKEN}"
_FEW_FILES = 64


async def measure(servers: Servers, *, quick: bool) -> Results:
    """Measure each flood, and half-open requests with few file descriptors."""
    results = Results()
    await anyio.to_thread.run_sync(_measure, 10 if quick else 1, results)
    return results


def _measure(divisor: int, results: Results) -> None:
    allow_files()

    def half_open(clients: Clients) -> None:
        for _ in range(5000 // divisor):
            clients.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n")

    def bodies(clients: Clients) -> None:
        for _ in range(100 // divisor):
            clients.send(head("/v1/chat/completions", _BEARER, method="POST", length=60 * _MIB))
        clients.push(b" " * (59 * _MIB))

    def streams(clients: Clients) -> None:
        for _ in range(2000 // divisor):
            clients.send(head("/console/activity/live", _BEARER)).recv(65536)

    floods = {"half-open requests": half_open, "unfinished bodies": bodies, "event streams": streams}
    slowest: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder, flooded_backend(Path(folder)) as backend:
        before = backend.memory()
        growth = 0
        for name, flood in floods.items():
            slowest[name], memory = _flooded(backend, flood)
            growth = max(growth, memory - before)
    with tempfile.TemporaryDirectory() as folder, flooded_backend(Path(folder), files=_FEW_FILES) as backend:
        slowest[f"{_FEW_FILES} file descriptors"], _ = _flooded(backend, half_open)
    results.add(
        "flood_health_seconds_max",
        max(slowest.values()),
        ", ".join(f"{name} {seconds * 1000:.0f} ms" for name, seconds in slowest.items()),
        [*slowest.values()],
    )
    results.add("flood_growth_mb", growth, f"from {before} MB")


def _flooded(backend: FloodedBackend, flood: Callable[[Clients], None]) -> tuple[float, int]:
    """Return the slowest answer of `/health` during a flood in seconds, and the memory at its end in MiB."""
    with Prober(backend) as prober, Clients(backend) as clients:
        flood(clients)
        memory = backend.memory()
    if set(prober.statuses) != {200}:
        raise RuntimeError(f"/health failed under a flood: {prober.statuses}")
    return prober.slowest, memory
