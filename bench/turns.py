"""Turns: the overhead on the time to the first token, and the throughput with twenty clients."""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
import httpx2 as httpx
import psutil
from pydantic import SecretStr

from bench.backend import TOKEN, serving
from bench.conversation import first_token
from bench.gateway import home_with_releases
from bench.operator import Operator
from bench.pooled import AGENTS, CLIENTS, client_of, described, with_agents
from bench.results import Results
from bench.setup import Servers, Setup, superuser_url
from bench.start import cpu_of_parts
from bench.timing import medians
from isabella.embedded import Server, postgres
from isabella.practice import PracticeVendors

#: Seconds that the twenty clients run.
SECONDS = float(os.environ.get("ISABELLA_BENCH_SECONDS", "240"))
_PAIRS = 5
#: Pairs of the twenty clients: the speed of a machine changes within a minute, and the rate of a short block depends
#: on its last turns. Ratios of blocks of 3 s had a standard deviation of 0.11, of 8 s one of 0.03.
_PAIRS_OF_MANY = 12
#: Pairs of turns with and without a wait for the disk.
_PAIRS_OF_COMMITS = 12
#: Turns of each way in one pair of the first token.
_TURNS = 8
#: The same, and the pairs, in the long form: turns differ from each other by more than Isabella costs.
_TURNS_LONG, _PAIRS_LONG = 20, 9


@dataclass
class Tally:
    """The outcome of some turns."""

    turns: int = 0
    errors: list[str] = field(default_factory=list)
    overlaps: int = 0
    seconds: float = 0.0

    @property
    def per_second(self) -> float:
        """Turns per second."""
        return self.turns / self.seconds if self.seconds else 0.0


@dataclass
class Talkers:
    """Clients of Letta and of Isabella.

    Attributes:
        letta: a client of Letta.
        isabella: a client of the backend.
        backend: the backend's process.
        agents: the agents' ids by name.
        server: the Letta and its Postgres.
        superuser: the URL of Letta's database with the superuser of its Postgres.
    """

    letta: httpx.AsyncClient
    isabella: httpx.AsyncClient
    backend: psutil.Process
    agents: dict[str, str]
    server: Server
    superuser: SecretStr
    speaking: set[str] = field(default_factory=set)

    async def directly(self, agent: str) -> float:
        """Run a turn on Letta directly; return the seconds to the first token."""
        return await first_token(self.letta, self.agents[agent])

    async def through(self, agent: str, tally: Tally | None = None) -> float:
        """Run a turn through Isabella; return the seconds to the first token."""
        began = time.perf_counter()
        first, ended, kind, asked = 0.0, "", "", False
        path = f"/api/agents/{agent}/turns"
        async with self.isabella.stream("POST", path, json={"message": "Say good morning"}) as response:
            async for line in response.aiter_lines():
                if line.startswith("event: "):
                    kind = line[7:]
                    if kind == "vendor" and tally is not None:
                        asked = True
                        tally.overlaps += agent in self.speaking
                        self.speaking.add(agent)
                    if not first and kind in ("reasoning", "text"):
                        first = time.perf_counter() - began
                    if kind == "end" and asked:
                        self.speaking.discard(agent)
                elif line.startswith("data: ") and kind == "end":
                    ended = line
        if '"completed"' not in ended:
            raise RuntimeError(ended[:200] or f"status {response.status_code}")
        return first


async def measure(servers: Servers, *, quick: bool) -> Results:
    """Measure both on one Letta, whose agents reach their vendor through the gateway either way."""
    results = Results()
    async with _talkers(servers) as talkers:
        await _first_token(talkers, results, quick=quick)
        if not quick:
            await _commit(talkers, results)
        await _many(talkers, results, seconds=16.0 if quick else SECONDS, pairs=_PAIRS if quick else _PAIRS_OF_MANY)
    return results


async def _first_token(talkers: Talkers, results: Results, *, quick: bool) -> None:
    """Compare the medians of some turns each, once for each pair; the first pair warms up."""
    one, other = [*talkers.agents][:2]
    ours: list[float] = []
    bare: list[float] = []
    turns, pairs = (_TURNS, _PAIRS) if quick else (_TURNS_LONG, _PAIRS_LONG)
    for _ in range(pairs + 1):
        direct: list[float] = []
        through: list[float] = []
        for number in range(turns):
            # Swap the agents and the order, so that neither history nor drift matters.
            first, second = (one, other) if number % 2 else (other, one)
            if number % 4 < 2:
                direct.append(await talkers.directly(first))
                through.append(await talkers.through(second))
            else:
                through.append(await talkers.through(second))
                direct.append(await talkers.directly(first))
        ours.append(statistics.median(through))
        bare.append(statistics.median(direct))
    ours, bare = ours[1:], bare[1:]
    results.compare("ttft_ratio", ours, bare, medians(through_Isabella=ours, Letta_alone=bare))


async def _commit(talkers: Talkers, results: Results) -> None:
    """Compare whole turns while Postgres does not wait for the disk at a commit with turns while it does."""
    seconds: dict[str, list[float]] = {"off": [], "on": []}
    agent = next(iter(talkers.agents))
    with postgres.connect(talkers.superuser) as connection:
        for number in range(_PAIRS_OF_COMMITS + 1):
            for wait in ("on", "off") if number % 2 else ("off", "on"):
                connection.execute(f"ALTER SYSTEM SET synchronous_commit = {wait}")
                connection.execute("SELECT pg_reload_conf()")
                turns = []
                for _ in range(_TURNS // 2):
                    began = time.perf_counter()
                    await talkers.through(agent)
                    turns.append(time.perf_counter() - began)
                seconds[wait].append(statistics.median(turns))
        connection.execute("ALTER SYSTEM RESET synchronous_commit")
        connection.execute("SELECT pg_reload_conf()")
    off, on = seconds["off"][1:], seconds["on"][1:]
    results.compare("commit_off_over_on", off, on, medians(without_waiting=off, waiting=on))


async def _many(talkers: Talkers, results: Results, *, seconds: float, pairs: int) -> None:
    block = seconds / (2 * pairs)
    await _crowd(talkers, Tally(), min(block, 5.0), through=True)
    before = talkers.backend.memory_info().rss
    ours: list[Tally] = []
    bare: list[Tally] = []
    spent: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    for number in range(pairs):
        for through in (True, False) if number % 2 else (False, True):
            tally = Tally()
            (ours if through else bare).append(tally)
            earlier = cpu_of_parts(talkers.backend, talkers.server)
            await _crowd(talkers, tally, block, through=through)
            spent[through].update(cpu_of_parts(talkers.backend, talkers.server))
            spent[through].subtract(earlier)
    growth = (talkers.backend.memory_info().rss - before) / 1024 / 1024
    rates, bare_rates = ([tally.per_second for tally in tallies] for tallies in (ours, bare))
    said = (
        f"ours {statistics.median(rates):.1f}/s, Letta alone {statistics.median(bare_rates):.1f}/s, "
        f"{sum(tally.turns for tally in ours)} turns; processor time of a turn: {_cost(spent[True], ours)}; "
        f"alone: {_cost(spent[False], bare)}"
    )
    results.compare("turns_per_second_ratio", rates, bare_rates, said)
    results.add("rss_growth_mb", max(0.0, growth), f"from {before / 1024 / 1024:.0f} MB, {seconds:.0f} s")
    errors = [error for tally in ours for error in tally.errors]
    results.add("turn_errors", len(errors), "; ".join(errors[:2]))
    results.add("turn_overlaps", sum(tally.overlaps for tally in ours))


def _cost(spent: Mapping[str, float], tallies: Iterable[Tally]) -> str:
    """Return the processor time of each part per turn."""
    turns = sum(tally.turns for tally in tallies) or 1
    return ", ".join(f"{name} {1000 * seconds / turns:.0f} ms" for name, seconds in spent.items())


async def _crowd(talkers: Talkers, tally: Tally, seconds: float, *, through: bool) -> None:
    """Run twenty clients, four per agent. Letta alone does not order turns, so there the clients take turns."""
    order = {name: asyncio.Lock() for name in talkers.agents}
    names = [*talkers.agents]
    began = time.perf_counter()

    async def client(number: int) -> None:
        agent = names[number % len(names)]
        while time.perf_counter() - began < seconds:
            try:
                if through:
                    await talkers.through(agent, tally)
                else:
                    async with order[agent]:
                        await talkers.directly(agent)
            except (RuntimeError, httpx.TransportError) as error:
                tally.errors.append(str(error) or type(error).__name__)
            else:
                tally.turns += 1

    async with anyio.create_task_group() as tasks:
        for number in range(CLIENTS):
            tasks.start_soon(client, number)
    tally.seconds += time.perf_counter() - began


@asynccontextmanager
async def _talkers(servers: Servers) -> AsyncIterator[Talkers]:
    """Start a backend with its own Letta and gateway, as `isabella up` does; Letta's agents are on that gateway."""
    ours = Server(servers.home / "bench-direct")
    with home_with_releases(servers.home, ours), PracticeVendors() as vendors:
        letta = ours.up()
        Operator(vendors, ours.home / ".env")
        with serving(Setup.in_home(letta, ours.home), with_agents(ours.home), embedded=True) as (address, process):
            async with (
                client_of(letta.base_url, letta.password.get_secret_value()) as direct,
                client_of(address, TOKEN) as isabella,
            ):
                agents = {f"bench-{number}": await described(direct, number) for number in range(AGENTS)}
                ids = {name: str(agent["id"]) for name, agent in agents.items()}
                yield Talkers(direct, isabella, process, ids, ours, superuser_url(ours, letta))
