"""A turn through Isabella, its gateway and its Letta, over one on a Letta that an operator started by hand.

The servers run at once, with agents of the same prompt, memory, tools and model on the same practice vendors. Turns
alternate between them, so that what else the machine does meets all of them.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import anyio
import httpx2 as httpx

from bench.backend import TOKEN, serving
from bench.conversation import HANDLES, defined, first_token
from bench.gateway import home_with_releases
from bench.operator import Operator
from bench.results import Results
from bench.setup import Servers, Setup
from bench.start import ByHand
from bench.timing import medians
from isabella.embedded import Server
from isabella.practice import PracticeVendors

AGENTS, CLIENTS = 5, 20
_VENDOR = "groq"
_BODY = {"message": "Say good morning"}
_PAIRS = 5
#: The time limit of a turn, in seconds. At Letta as shipped, one in thirty hangs for a minute.
_PATIENCE = 15.0
_KEPT = ("name", "system", "agent_type", "llm_config", "embedding_config", "message_buffer_autoclear")
#: Seconds of each way in one pair of the throughput.
_BLOCK = float(os.environ.get("ISABELLA_BENCH_BLOCK", "12"))
_SHORT_BLOCK = 4.0
#: The names of the Lettas that are started by hand in the figures of their failed turns.
_ERRORS = {"pooled": "by_hand", "shipped": "shipped"}


class Way(Protocol):
    """A way to have a turn with an agent; `name` is its name in details."""

    name: str

    async def turn(self, number: int) -> float:
        """Have a turn with the agent of this number; return the seconds to the first token.

        Raises `RuntimeError` if it ends without an answer, and `TimeoutError` if it does not end in time.
        """


@dataclass
class ThroughIsabella:
    """Turns through Isabella's API."""

    client: httpx.AsyncClient
    name: str = "Isabella"

    async def turn(self, number: int) -> float:
        """Have a turn."""
        began, first, kind, ended = time.perf_counter(), 0.0, "", ""
        path = f"/api/agents/bench-{number}/turns"
        async with _in_time(CLIENTS // AGENTS), self.client.stream("POST", path, json=_BODY) as response:
            async for line in response.aiter_lines():
                if line.startswith("event: "):
                    kind = line[7:]
                    if not first and kind in ("reasoning", "text"):
                        first = time.perf_counter() - began
                elif line.startswith("data: ") and kind == "end":
                    ended = line
        if '"completed"' not in ended:
            raise RuntimeError(ended[:200] or f"status {response.status_code}")
        return first


@dataclass
class AtLetta:
    """Turns at a Letta. It does not order turns of one agent, so the clients take turns."""

    client: httpx.AsyncClient
    ids: Sequence[str]
    name: str
    _order: list[asyncio.Lock] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._order = [asyncio.Lock() for _ in self.ids]

    async def turn(self, number: int) -> float:
        """Have a turn."""
        async with self._order[number], _in_time(1):
            return await first_token(self.client, self.ids[number])


async def measure(servers: Servers, *, quick: bool) -> Results:
    """Measure on instances of their own, with the release of the others."""
    results = Results()
    # Turns of a Letta as shipped hang too often for a short form.
    names = ("pooled",) if quick else ("pooled", "shipped")
    async with ways(servers, names) as (ours, by_hand):
        isabella, lettas = Counted(ours), {name: Counted(way) for name, way in by_hand.items()}
        for name, letta in lettas.items():
            await _first_token(results, f"ttft_over_{name}", isabella, letta, _PAIRS if quick else 9)
        for name, letta in lettas.items():
            block = _SHORT_BLOCK if quick else _BLOCK
            await _throughput(results, f"turns_per_second_over_{name}", isabella, letta, block)
        for figure, way in {"pooled": isabella, **{_ERRORS[name]: letta for name, letta in lettas.items()}}.items():
            results.add(f"{figure}_turn_errors", len(way.errors), way.told)
    return results


@dataclass
class Counted:
    """A way whose turns are counted.

    Attributes:
        turns: how many there were.
        errors: what became of those that ended without an answer, or not in time.
    """

    way: Way
    turns: int = 0
    errors: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The name of the way."""
        return self.way.name

    @property
    def told(self) -> str:
        """The number of turns, and the first errors."""
        return "; ".join([f"of {self.turns} turns", *self.errors[:2]])

    async def turn(self, number: int) -> float | None:
        """Have a turn; return the seconds to the first token, or None if it failed."""
        self.turns += 1
        try:
            return await self.way.turn(number)
        except TimeoutError:
            self.errors.append(f"no end after {_PATIENCE:g} s")
        except (RuntimeError, httpx.TransportError) as error:
            self.errors.append(str(error) or type(error).__name__)
        return None


@asynccontextmanager
async def ways(servers: Servers, names: Sequence[str]) -> AsyncIterator[tuple[ThroughIsabella, dict[str, AtLetta]]]:
    """Start everything; yield Isabella, and by name the Lettas that are started by hand.

    `pooled` has a pool of connections, `shipped` has none; the first one registers the vendor.
    """
    ours, by_hand = Server(servers.home / "bench-turns"), Server(servers.home / "bench-hand")
    async with AsyncExitStack() as stack:
        for server in (ours, by_hand):
            stack.enter_context(home_with_releases(servers.home, server))
        vendors = stack.enter_context(PracticeVendors())
        letta = by_hand.up()
        # While that runs, so that ours gets another port.
        setup = Setup.in_home(ours.up(), ours.home)
        Operator(vendors, ours.home / ".env")
        address, _process = stack.enter_context(serving(setup, with_agents(ours.home), embedded=True))
        isabella = await stack.enter_async_context(client_of(address, TOKEN))
        at_ours = await stack.enter_async_context(
            client_of(setup.letta.base_url, setup.letta.password.get_secret_value())
        )
        agents = [await described(at_ours, number) for number in range(AGENTS)]
        lettas: dict[str, AtLetta] = {}
        for name in names:
            operator = ByHand(by_hand, letta, pooling=name == "pooled")
            await operator.start()
            stack.push_async_callback(operator.stop)
            client = await stack.enter_async_context(client_of(f"http://127.0.0.1:{operator.port}", ""))
            if not lettas:
                await _provide(client, vendors)
            ids = [await _create(client, agent, vendors) for agent in agents]
            lettas[name] = AtLetta(client, ids, "by hand" if name == "pooled" else "as shipped")
        yield ThroughIsabella(isabella), lettas


@asynccontextmanager
async def _in_time(turns: int) -> AsyncIterator[None]:
    """Limit the time of so many turns, one after the other. Raises `TimeoutError`."""
    with anyio.fail_after(_PATIENCE * turns):
        yield


async def _first_token(results: Results, figure: str, ours: Counted, other: Counted, pairs: int) -> None:
    """Compare the medians of six turns each, once for each pair. A failed turn is counted, and in no median."""
    medians_: list[list[float]] = []
    for number in range(pairs + 1):
        seconds: dict[str, list[float]] = {ours.name: [], other.name: []}
        for turn in range(6):
            for way in (ours, other) if (number + turn) % 2 else (other, ours):
                if (first := await way.turn(turn % AGENTS)) is not None:
                    seconds[way.name].append(first)
        if number and all(seconds.values()):  # the first pair warms up
            medians_.append([statistics.median(seconds[way.name]) for way in (ours, other)])
    mine, theirs = zip(*medians_, strict=True)
    results.compare(figure, mine, theirs, medians(**{ours.name: mine, other.name: theirs}))


async def _throughput(results: Results, figure: str, ours: Counted, other: Counted, block: float) -> None:
    """Compare the turns a second of twenty clients."""
    rates: dict[str, list[float]] = {ours.name: [], other.name: []}
    await _crowd(ours, 2.0)
    await _crowd(other, 2.0)
    for number in range(_PAIRS):
        for way in (ours, other) if number % 2 else (other, ours):
            rates[way.name].append(await _crowd(way, block))
    detail = ", ".join(f"{name} {statistics.median(rate):.1f}/s" for name, rate in rates.items())
    results.compare(figure, rates[ours.name], rates[other.name], detail)


async def _crowd(way: Counted, seconds: float) -> float:
    """Return the turns a second of twenty clients, four for each agent; turns that began in time count."""
    began, turns = time.perf_counter(), 0

    async def client(number: int) -> None:
        nonlocal turns
        while time.perf_counter() - began < seconds:
            if await way.turn(number % AGENTS) is not None:
                turns += 1

    async with anyio.create_task_group() as tasks:
        for number in range(CLIENTS):
            tasks.start_soon(client, number)
    return turns / (time.perf_counter() - began)


def with_agents(home: Path) -> dict[str, str]:
    """Return the variables of the backend: five agents on one vendor, through the gateway."""
    file = home / "agents.toml"
    file.write_text("\n".join(defined(f"bench-{number}", [HANDLES[_VENDOR]]) for number in range(AGENTS)))
    return {"ISABELLA_AGENTS_FILE": str(file), "ISABELLA_EMBEDDINGS": "off", "ISABELLA_GATEWAY": "on"}


@asynccontextmanager
async def client_of(address: str, secret: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server, without a limit of connections."""
    headers = {"Authorization": f"Bearer {secret}"} if secret else {}
    limits = httpx.Limits(max_connections=None, keepalive_expiry=3.0)
    async with httpx.AsyncClient(
        base_url=address, headers=headers, timeout=180, limits=limits, trust_env=False
    ) as client:
        yield client


async def described(letta: httpx.AsyncClient, number: int) -> Mapping[str, Any]:
    """Return the agent of this number as Letta has it."""
    (agent,) = (await letta.get("/v1/agents/", params={"name": f"bench-{number}"})).raise_for_status().json()
    assert isinstance(agent, dict)
    return agent


async def _provide(letta: httpx.AsyncClient, vendors: PracticeVendors) -> None:
    """Register the vendor under the name of ours, with its own base URL."""
    provider = {
        "name": HANDLES[_VENDOR].partition("/")[0],
        "provider_type": "openai",
        "api_key": vendors.key(_VENDOR).get_secret_value(),
        "base_url": vendors.base_url(_VENDOR),
    }
    (await letta.post("/v1/providers/", json=provider)).raise_for_status()


async def _create(letta: httpx.AsyncClient, agent: Mapping[str, Any], vendors: PracticeVendors) -> str:
    """Create an agent like one of ours, bound to the vendor itself instead of the gateway."""
    blocks = [
        {name: block[name] for name in ("label", "value", "limit", "description") if block.get(name) is not None}
        for block in agent["memory"]["blocks"]
    ]
    body = {name: agent[name] for name in _KEPT if agent.get(name) is not None}
    body["llm_config"] = {**agent["llm_config"], "model_endpoint": vendors.base_url(_VENDOR)}
    body |= {"memory_blocks": blocks, "tools": [tool["name"] for tool in agent["tools"]], "include_base_tools": False}
    made = (await letta.post("/v1/agents/", json=body)).raise_for_status().json()
    return str(made["id"])
