"""The cost of the gateway on the way of a token, between a client and a practice vendor, all three as processes."""

from __future__ import annotations

import asyncio
import re
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2 as httpx

from bench.results import Results
from isabella.config.settings import Settings
from isabella.config.sources import Sources
from isabella.gateway import process
from isabella.practice import VendorFault, daemon
from isabella.practice.overlay import with_practice_vendors
from isabella.system.urls import gateway_base_url

_VENDOR = "cerebras"
#: Seconds between two tokens of a vendor: 200 tokens a second.
_PACE = 0.005
_STREAMS = 8
_WARM_UP = 5
_TOKEN = re.compile(rb'"(?:content|reasoning)":"[^"]')


async def measure(*, quick: bool) -> Results:
    """Measure the time to the first token, and the throughput."""
    results = Results()
    with _processes() as (vendors, gateway):
        async with _clients(vendors, gateway) as clients:
            await _first_token(clients, results, rounds=10 if quick else 400)
            await _throughput(clients, vendors, results, quick=quick)
    return results


@dataclass(frozen=True)
class Clients:
    """Clients of the vendor, directly and through the gateway. Each keeps its connections."""

    directly: httpx.AsyncClient
    through: httpx.AsyncClient

    def alternating(self, number: int) -> tuple[httpx.AsyncClient, httpx.AsyncClient]:
        """Return both, the order swapped with each round."""
        return (self.directly, self.through) if number % 2 else (self.through, self.directly)


async def _first_token(clients: Clients, results: Results, *, rounds: int) -> None:
    pairs: list[Mapping[httpx.AsyncClient, float]] = []
    for number in range(rounds + _WARM_UP):
        seconds = {client: (await _stream(client, "Say good morning"))[0] for client in clients.alternating(number)}
        pairs.append(seconds)
    ours = [pair[clients.through] * 1000 for pair in pairs[_WARM_UP:]]
    bare = [pair[clients.directly] * 1000 for pair in pairs[_WARM_UP:]]
    added = [one - other for one, other in zip(ours, bare, strict=True)]
    told = f"through it {statistics.median(ours):.1f} ms, directly {statistics.median(bare):.1f} ms"
    results.add("gateway_ttft_ms", statistics.median(added), told, added)
    results.compare("gateway_ttft_over_direct", ours, bare, told)


async def _throughput(clients: Clients, vendors: daemon.Running, results: Results, *, quick: bool) -> None:
    rounds, tokens = 5, 200 if quick else 1000
    vendors.control.fault(_VENDOR, VendorFault(on="chat", between=_PACE))
    one, told_one = await _ratios(clients, rounds, tokens, streams=1)
    many, told_many = await _ratios(clients, rounds, tokens, streams=_STREAMS)
    slower = min(one, many, key=statistics.median)
    told = f"{told_one}; {told_many}; {1 / _PACE:g} tokens/s each"
    results.add("gateway_throughput_ratio", statistics.median(slower), told, slower)
    vendors.control.clear(_VENDOR)
    unpaced, told = await _ratios(clients, 3 * rounds, tokens, streams=1)
    results.add("gateway_unpaced_ratio", statistics.median(unpaced), told, unpaced)


async def _ratios(clients: Clients, rounds: int, tokens: int, *, streams: int) -> tuple[list[float], str]:
    """Return for each pair the bytes per second through the gateway over direct ones, and the medians as text."""
    rates: dict[httpx.AsyncClient, list[float]] = {clients.directly: [], clients.through: []}
    for number in range(rounds):
        for client in clients.alternating(number):
            began = time.perf_counter()
            streamed = await asyncio.gather(*(_stream(client, f"Count to {tokens}") for _ in range(streams)))
            rates[client].append(sum(size for _, size in streamed) / (time.perf_counter() - began))
    ratios = [one / other for one, other in zip(rates[clients.through], rates[clients.directly], strict=True)]
    ours, bare = statistics.median(rates[clients.through]), statistics.median(rates[clients.directly])
    named = "1 stream" if streams == 1 else f"{streams} streams"
    return ratios, f"{named}: through it {ours / 1000:.1f} kB/s, directly {bare / 1000:.1f} kB/s"


async def _stream(client: httpx.AsyncClient, text: str) -> tuple[float, int]:
    """Read a streamed answer; return the seconds to its first token, and its bytes."""
    began = time.perf_counter()
    first, size = 0.0, 0
    async with client.stream("POST", "/chat/completions", json=_request(text)) as response:
        response.raise_for_status()
        async for chunk in response.aiter_raw():
            if not first and _TOKEN.search(chunk):
                first = time.perf_counter() - began
            size += len(chunk)
    assert first, "no token came"
    return first, size


def _request(text: str) -> dict[str, Any]:
    """Return a chat request of about the size of Letta's: a system prompt, twenty messages and six tools."""
    system = {"role": "system", "content": "You are an agent with a memory of its own. " * 200}
    history = [{"role": ("user", "assistant")[number % 2], "content": "Good morning. " * 20} for number in range(20)]
    parameters = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
    tools = [
        {
            "type": "function",
            "function": {"name": f"tool_{number}", "description": "A tool. " * 40, "parameters": parameters},
        }
        for number in range(6)
    ]
    messages = [system, *history, {"role": "user", "content": text}]
    return {"model": "gpt-oss-120b", "messages": messages, "tools": tools, "stream": True}


@asynccontextmanager
async def _clients(vendors: daemon.Running, gateway: str) -> AsyncIterator[Clients]:
    key = vendors.key(_VENDOR).get_secret_value()
    options: dict[str, Any] = {
        "headers": {"Authorization": f"Bearer {key}", "Accept-Encoding": "identity"},
        "timeout": 120,
        "trust_env": False,
        "limits": httpx.Limits(max_connections=None, max_keepalive_connections=_STREAMS),
    }
    async with (
        httpx.AsyncClient(base_url=vendors.base_url(_VENDOR), **options) as bare,
        httpx.AsyncClient(base_url=gateway_base_url(gateway, _VENDOR), **options) as ours,
    ):
        yield Clients(bare, ours)


@contextmanager
def _processes() -> Iterator[tuple[daemon.Running, str]]:
    """Run practice vendors and a gateway as processes of their own; yield the vendors and the gateway's address."""
    with tempfile.TemporaryDirectory(prefix="isabella-bench-") as folder:
        home = Path(folder)
        file = home / "isabella.toml"
        file.touch()
        own = {"ISABELLA_HOME": folder, "ISABELLA_CONFIG_FILE": str(file), "ISABELLA_GATEWAY": "on"}
        try:
            vendors = daemon.up(home)
            gateway = process.start(with_practice_vendors(Settings(sources=Sources(own)), vendors))
            yield vendors, gateway.address
        finally:
            process.daemon(home).stop()
            daemon.down(home)
