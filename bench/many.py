"""Many agents, and many messages of one agent: the cost of a turn, memory, and the time of a start.

Four stacks run at once, each with a Letta, a Postgres and a backend of its own, and one size of each series. Turns
alternate between them, so that what else the machine does meets all of them. Rows are copied in the database.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import httpx2 as httpx
import psutil

from bench.agent_rows import add_messages, copy_agent, remove_messages
from bench.backend import serving
from bench.conversation import client_of, through
from bench.gateway import home_with_releases
from bench.operator import Operator
from bench.results import Results, Series, rounded
from bench.setup import Servers, Setup
from bench.start import cpu_of_parts, memory_of_parts
from isabella.embedded import Server
from isabella.practice import PracticeVendors

AGENTS = (10, 100, 1_000, 10_000)
MESSAGES = (100, 1_000, 10_000, 100_000)
_FEW = AGENTS[0]
_DEFAULT_AGENTS = 2
_COLUMNS = (
    "turn, ms",
    "processor time of a turn, ms",
    "turn of an agent that was idle, ms",
    "start of the backend, s",
    "backend and gateway, MB",
    "letta, MB",
    "postgres, MB",
)
_NAME = "many-"
_PAIRS = 7
#: Seconds that the starts of one stack may take in all, before the last of them.
_MOST_STARTING = 40.0
#: Turns of each stack in one pair.
_TURNS = 6
#: These agents have turns all the time; the others have one now and then, after what is known of them has expired.
_BUSY_AGENTS = 2
_VARIABLES = {"ISABELLA_EMBEDDINGS": "off", "ISABELLA_GATEWAY": "on"}


@dataclass
class Costs:
    """What turns cost, once for each pair."""

    turns: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    idle: list[float] = field(default_factory=list)


@dataclass
class Stack:
    """A Letta with its Postgres, and the backend in front of it.

    Attributes:
        server: both.
        setup: where they are.
        template: the id of the agent that the others are copies of.
    """

    server: Server
    setup: Setup
    template: str = ""

    async def furnish(self) -> None:
        """Create an agent, have it say something, and copy it."""
        with self.serving() as (address, _):
            async with client_of(address) as backend:
                created = await backend.post("/api/agents", json={"name": f"{_NAME}0"})
                self.template = created.raise_for_status().json()["id"]
                await _say(backend, 0)
        self.copy(range(1, _FEW - _DEFAULT_AGENTS))

    def copy(self, numbers: range) -> None:
        """Copy the agent."""
        copy_agent(self.setup.letta, self.template, _NAME, numbers=numbers)

    def serving(self) -> AbstractContextManager[tuple[str, psutil.Process]]:
        """Run the backend; yield its address and process."""
        return serving(self.setup, _VARIABLES, embedded=True)

    def start(self) -> float:
        """Return the seconds until a backend has its agents; it is stopped again."""
        began = time.perf_counter()
        with self.serving():
            return time.perf_counter() - began


async def measure(servers: Servers, *, quick: bool) -> Results:
    """Measure both series."""
    results = Results()
    sizes, messages = (AGENTS[:2], MESSAGES[:2]) if quick else (AGENTS, MESSAGES)
    async with _stacks(servers, len(sizes)) as stacks:
        for stack, size in zip(stacks, messages, strict=True):
            add_messages(stack.setup.letta, stack.template, size)
        await _measure(results, "messages", stacks, messages, quick=quick)
        for stack, size in zip(stacks, sizes, strict=True):
            remove_messages(stack.setup.letta)
            stack.copy(range(_FEW - _DEFAULT_AGENTS, size - _DEFAULT_AGENTS))
        costs = await _measure(results, "agents", stacks, sizes, quick=quick)
    if not quick:
        few, many = costs[AGENTS[0]], costs[1_000]
        for name, of_many, of_few in (("turn", many.turns, few.turns), ("turn_cpu", many.cpu, few.cpu)):
            told = f"{statistics.median(of_many):.0f} ms, {statistics.median(of_few):.0f} ms"
            results.compare(f"{name}_at_1000_agents_over_10", of_many, of_few, told)
    return results


@asynccontextmanager
async def _stacks(servers: Servers, number: int) -> AsyncIterator[list[Stack]]:
    """Start so many stacks, each with a few agents."""
    async with AsyncExitStack() as stack:
        vendors = stack.enter_context(PracticeVendors())
        stacks = []
        for one in range(number):
            server = Server(servers.home / f"bench-many-{one}")
            stack.enter_context(home_with_releases(servers.home, server))
            setup = Setup.in_home(server.up(), server.home)
            Operator(vendors, server.home / ".env")
            stacks.append(Stack(server, setup))
            await stacks[-1].furnish()
        yield stacks


async def _measure(
    results: Results, name: str, stacks: Sequence[Stack], sizes: Sequence[int], *, quick: bool
) -> Mapping[int, Costs]:
    """Measure all stacks, and add the series."""
    rounds = 1 if quick else 5
    starts: list[list[float]] = [[] for _ in stacks]
    for _ in range(rounds):
        for seconds, stack in zip(starts, stacks, strict=True):
            if sum(seconds) < _MOST_STARTING:
                seconds.append(stack.start())
    costs = [Costs() for _ in stacks]
    async with AsyncExitStack() as opened:
        running = []
        for stack in stacks:
            address, process = opened.enter_context(stack.serving())
            running.append((await opened.enter_async_context(client_of(address)), process, stack.server))
        for pair in range((2 if quick else _PAIRS) + 1):
            order = [*zip(costs, running, strict=True)]
            for cost, (backend, process, server) in order if pair % 2 else reversed(order):
                await _converse(cost if pair else Costs(), backend, process, server, pair)
        memory = [memory_of_parts(process, server) for _, process, server in running]
    rows = {
        size: tuple(
            rounded(value)
            for value in (
                statistics.median(cost.turns),
                statistics.median(cost.cpu),
                statistics.median(cost.idle),
                statistics.median(seconds),
                parts["backend and gateway"],
                parts["letta"],
                parts["postgres"],
            )
        )
        for size, cost, seconds, parts in zip(sizes, costs, starts, memory, strict=True)
    }
    results.series[name] = Series(name, _COLUMNS, rows)
    for size, row in rows.items():
        print(f"  {size} {name}: {', '.join(f'{one} {value:g}' for one, value in zip(_COLUMNS, row, strict=True))}")
    return dict(zip(sizes, costs, strict=True))


async def _converse(
    costs: Costs, backend: httpx.AsyncClient, process: psutil.Process, server: Server, pair: int
) -> None:
    """Have some turns with agents that are in use, and one with an agent that was idle; all in milliseconds."""
    idle = _BUSY_AGENTS + pair % (_FEW - _DEFAULT_AGENTS - _BUSY_AGENTS)
    costs.idle.append(await _say(backend, idle) * 1000)
    before = sum(cpu_of_parts(process, server).values())
    seconds = [await _say(backend, number % _BUSY_AGENTS) for number in range(_TURNS)]
    costs.cpu.append((sum(cpu_of_parts(process, server).values()) - before) / _TURNS * 1000)
    costs.turns.append(statistics.median(seconds) * 1000)


async def _say(backend: httpx.AsyncClient, number: int) -> float:
    """Run a turn; return its seconds."""
    began = time.perf_counter()
    failure, _ = await through(backend, f"{_NAME}{number}")
    assert failure is None, failure
    return time.perf_counter() - began
