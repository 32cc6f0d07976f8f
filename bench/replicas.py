"""Three Isabellas and two Lettas on one Postgres, all of which are killed and restarted while 20 clients talk.

The processes are those of a container platform: `isabella up`, `isabella letta run`, `isabella gateway run`. The
clients and the Isabellas reach the others through load balancers. A client whose connection breaks sends its
request again, with the same `Idempotency-Key`, as a program does that wants its message to arrive once.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sysconfig
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from secrets import token_hex
from typing import Any

import anyio
import anyio.to_thread
import httpx2 as httpx
import psutil

from bench.backend import TOKEN, vendor_variables
from bench.balancer import Balancer, balancing
from bench.conversation import HANDLES, defined, history, how_it_ended, texts_of_user
from bench.own_postgres import OperatorsPostgres, operators_postgres
from bench.results import Results
from bench.setup import Servers
from isabella.embedded import Server
from isabella.embedded.ports import choose_port
from isabella.practice import NAMES, PracticeVendors
from isabella.practice.vendor import Request

ISABELLAS, LETTAS = 3, 2
CLIENTS, TURNS = 20, 200
_BETWEEN = 0.05  # seconds between the pieces of an answer, so that kills meet turns in the middle
_PATIENCE = 300.0
_PAUSE = 0.25
_ISABELLA = Path(sysconfig.get_path("scripts")) / "isabella"
_CHAT = "/chat/completions"


@dataclass
class Turn:
    """A turn as its client saw it."""

    agent: str
    word: str
    sent: int = 0
    text: str = ""
    error: str = ""
    end: dict[str, Any] | None = None

    @property
    def told(self) -> str:
        """How it ended, in a word or two; empty if in neither an answer nor an event that says why."""
        return how_it_ended(self.end, self.word, self.text, self.error)


@dataclass(frozen=True)
class Cost:
    """What the processes of one kind cost: processor time, for a turn in ms, and memory in MB, of so many."""

    cpu_ms: float
    rss_mb: float
    count: int

    def __str__(self) -> str:
        return f"{self.cpu_ms:.0f} ms, {self.rss_mb / self.count:.0f} MB each"


def _cost(processes: Iterable[psutil.Process]) -> Cost:
    milliseconds, size, count = 0.0, 0.0, 0
    for process in processes:
        count += 1
        times = process.cpu_times()
        # The sessions of Postgres are its children; those that have ended count in `children_user`.
        milliseconds += 1000 * (times.user + times.system + times.children_user + times.children_system)
        size += process.memory_info().rss
        for child in process.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                spent = child.cpu_times()
                milliseconds += 1000 * (spent.user + spent.system)
                size += child.memory_info().rss - child.memory_info().shared
    return Cost(milliseconds, size / 1e6, count)


@dataclass
class Process:
    """A process that is started again with the same command.

    Attributes:
        name: in messages.
        command: its arguments, of which none is a secret.
        environment: its whole environment.
        folder: its home.
        port: the port that it listens on.
        balancer: what tells when it is healthy.
        number: of the servers behind the balancer, from 1 on.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    folder: Path
    port: int
    balancer: Balancer
    number: int
    running: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        """What it has printed."""
        return self.folder / "process.log"

    def start(self) -> None:
        """Start it."""
        with self.log.open("ab") as log:
            self.running = subprocess.Popen(
                [str(_ISABELLA), *self.command], env=self.environment, cwd=self.folder, stdout=log, stderr=log
            )

    def end(self, how: signal.Signals) -> None:
        """Send it a signal, and wait for its end."""
        assert self.running is not None
        self.running.send_signal(how)
        self.running.wait(_PATIENCE)

    async def until_healthy(self) -> None:
        """Wait until requests come to it."""
        try:
            await self.balancer.until(self.number, healthy=True)
        except TimeoutError:
            raise AssertionError(f"{self.name} did not come up: {self.log.read_text()[-2000:]}") from None


@dataclass
class Outcome:
    """What came of all turns.

    Attributes:
        turns: every turn.
        strikes: how often a process was killed or stopped.
        missing: turns that were called stored, and are not in the history.
        denied: turns that were called not stored, and are.
        doubled: turns whose message is in the history more than once.
        overlaps: pairs of turns of one agent that ran at the same time.
        foreign: requests at a vendor with a key that is not its own.
    """

    turns: list[Turn] = field(default_factory=list)
    strikes: int = 0
    missing: list[str] = field(default_factory=list)
    denied: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    overlaps: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)

    @property
    def lost(self) -> list[str]:
        """The turns without an answer or an event that is true, and those whose message arrived twice."""
        untold = [f"{turn.word}: {turn.error or 'no end'}" for turn in self.turns if not turn.told]
        return [*untold, *self.missing, *self.denied, *self.doubled]


class Replicas:
    """All processes, and who talks to them."""

    def __init__(
        self,
        vendors: PracticeVendors,
        database: OperatorsPostgres,
        isabellas: Sequence[Process],
        lettas: Sequence[Process],
        gateway: Process,
    ) -> None:
        self.vendors, self.database = vendors, database
        self.isabellas, self.lettas, self.gateway = isabellas, lettas, gateway
        self.outcome = Outcome()
        self.seconds = 0.0
        self._phase = self._runs = 0
        self._moved = anyio.Event()
        self._spoke = anyio.Event()

    @property
    def processes(self) -> list[Process]:
        """All but Postgres."""
        return [*self.isabellas, *self.lettas, self.gateway]

    async def costs(self, *, clients: int, turns: int) -> dict[str, Cost]:
        """Have clients talk while nothing happens; return what the processes of each kind cost."""
        before, began = self._measured(), time.monotonic()
        await self._talk_through([], clients=clients, turns=turns)
        self.seconds = time.monotonic() - began
        after = self._measured()
        return {
            kind: Cost((cost.cpu_ms - before[kind].cpu_ms) / turns, cost.rss_mb, cost.count)
            for kind, cost in after.items()
        }

    async def run(self, strikes: Sequence[tuple[str, signal.Signals]], *, clients: int, turns: int) -> Outcome:
        """Have clients talk while processes are struck, one after another, and check what came of it."""
        for name in NAMES:
            self.vendors.fault(name, on="chat", between=_BETWEEN)
        self.vendors.forget()
        self.outcome = Outcome()
        await self._talk_through(strikes, clients=clients, turns=turns)
        await self._check()
        return self.outcome

    async def _talk_through(self, strikes: Sequence[tuple[str, signal.Signals]], *, clients: int, turns: int) -> None:
        self._phase, each = 0, turns // clients
        self._runs += 1
        async with anyio.create_task_group() as tasks:
            for number in range(clients):
                tasks.start_soon(self._talk, number, each, len(strikes))
            for name, how in strikes:
                await self._next_phase()
                await self._strike(name, how)
            await self._next_phase()

    def _measured(self) -> dict[str, Cost]:
        """Return the processor time and the memory of all processes of each kind so far."""
        postmaster = self.database.cluster.running()
        assert postmaster is not None
        pids = {
            "Isabella": [one.running.pid for one in self.isabellas if one.running is not None],
            "Letta": [one.running.pid for one in self.lettas if one.running is not None],
            "gateway": [one.running.pid for one in (self.gateway,) if one.running is not None],
            "Postgres": [postmaster.process.pid],
        }
        return {kind: _cost(map(psutil.Process, each)) for kind, each in pids.items()}

    async def _talk(self, number: int, turns: int, phases: int) -> None:
        """Have one turn after another, spread over the phases of the run."""
        agent = NAMES[number % len(NAMES)]
        for one in range(turns):
            while self._phase < (one * (phases + 1)) // turns:
                await self._moved.wait()
            turn = Turn(agent, f"run{self._runs}client{number}turn{one}word")
            self.outcome.turns.append(turn)
            with anyio.move_on_after(_PATIENCE):
                while turn.end is None:
                    turn.sent += 1
                    await self._say(turn)
                    if turn.end is None:
                        await anyio.sleep(_PAUSE)

    async def _next_phase(self) -> None:
        self._phase += 1
        self._spoke = anyio.Event()
        self._moved.set()
        self._moved = anyio.Event()

    async def _say(self, turn: Turn) -> None:
        """Send the message, to whichever Isabella the balancer chooses; note the events of a turn that ends."""
        body = {"message": f"Say one two three four five six seven eight nine {turn.word}"}
        headers = {"Authorization": f"Bearer {TOKEN}", "Idempotency-Key": turn.word}
        base_url, kind, text = f"http://127.0.0.1:{self.isabellas[0].balancer.port}", "", ""
        try:
            async with (
                httpx.AsyncClient(base_url=base_url, headers=headers, timeout=120, trust_env=False) as client,
                client.stream("POST", f"/api/agents/{turn.agent}/turns", json=body) as response,
            ):
                if response.is_error:
                    await response.aread()
                    turn.error = f"refused with {response.status_code}: {response.text[:200]}"
                    return
                async for line in response.aiter_lines():
                    if line.startswith("event: "):
                        kind = line[7:]
                    elif line.startswith("data: "):
                        said = json.loads(line[6:])
                        if kind == "text":
                            text += said["text"]
                            self._spoke.set()
                        elif kind == "error":
                            turn.error = f"{said['code']}: {said['message']}"
                        elif kind == "end":
                            turn.text, turn.end = text, said
        except httpx.TransportError as error:
            turn.error = f"connection lost: {error!r}"

    async def _strike(self, name: str, how: signal.Signals) -> None:
        """Kill or stop a process while a turn is answered; start it again, and wait until it is healthy."""
        with anyio.move_on_after(_PATIENCE):
            await self._spoke.wait()
        self.outcome.strikes += 1
        if name == "postgres":
            await anyio.to_thread.run_sync(self.database.kill if how is signal.SIGKILL else self.database.restart)
            if how is signal.SIGKILL:
                await anyio.to_thread.run_sync(self.database.start)
        else:
            process = next(one for one in self.processes if one.name == name)
            await anyio.to_thread.run_sync(process.end, how)
            await process.balancer.until(process.number, healthy=False)
            process.start()
        for one in self.processes:
            await one.until_healthy()
        print(f"  {self.outcome.strikes:>3} {how.name} {name}", flush=True)

    async def _check(self) -> None:
        """Compare what every turn said of itself with the history, and look for turns that overlap."""
        process = self.lettas[0]
        headers = {"Authorization": f"Bearer {process.environment['LETTA_API_KEY']}"}
        base_url = f"http://127.0.0.1:{process.port}"
        async with httpx.AsyncClient(base_url=base_url, headers=headers, timeout=120, trust_env=False) as letta:
            for name in NAMES:
                rows = await history(letta, name)
                heard = texts_of_user(rows)
                self._compare(name, heard)
                self.outcome.overlaps += interleaved(name, rows)
        for name in NAMES:
            requests = self.vendors.requests(name)
            self.outcome.foreign += [f"{name}: {one.key_masked}" for one in requests if not one.accepted]
            self.outcome.overlaps += at_once(name, requests)

    def _compare(self, agent: str, heard: Sequence[str]) -> None:
        for turn in (turn for turn in self.outcome.turns if turn.agent == agent and turn.end is not None):
            assert turn.end is not None
            times = sum(turn.word in text for text in heard)
            if turn.end.get("stored") and not times:
                self.outcome.missing.append(f"{turn.word} is missing: {turn.told}")
            if times and turn.end.get("stored") is False:
                self.outcome.denied.append(f"{turn.word} is stored: {turn.told}")
            if times > 1:
                self.outcome.doubled.append(f"{turn.word} is stored {times} times: {turn.told}")


def at_once(agent: str, requests: Sequence[Request]) -> list[str]:
    """Return the requests for answers at a vendor that began before the one before them had ended.

    Each vendor has one agent.
    """
    chats = sorted((one for one in requests if one.path.endswith(_CHAT)), key=lambda one: one.at)
    found = []
    for former, later in pairwise(chats):
        until = former.at + (former.ended_after if former.ended_after is not None else float("inf"))
        if later.at < until:
            found.append(
                f"{agent}: request {later.number} began {until - later.at:.3f} s before {former.number} ended"
            )
    return found


def interleaved(agent: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the runs whose messages have those of another run between them, in the order of their times."""
    runs = [row.get("run_id") for row in sorted(rows, key=lambda row: str(row.get("date")))]
    order = [run for before, run in zip([None, *runs], runs, strict=False) if run is not None and run != before]
    return [f"{agent}: {run}" for run, times in Counter(order).items() if times > 1]


@asynccontextmanager
async def replicas(releases: Path, home: Path, *, isabellas: int = ISABELLAS) -> AsyncIterator[Replicas]:
    """Start everything below a folder, which is empty, with the releases of another home and so many Isabellas."""
    async with AsyncExitStack() as stack:
        vendors = stack.enter_context(PracticeVendors())
        database = stack.enter_context(operators_postgres(home / "postgres"))
        database.create()
        ports = _ports(isabellas + LETTAS + 1)
        servers = {"letta": ports[:LETTAS], "isabella": ports[LETTAS:-1], "gateway": ports[-1:]}
        before = await stack.enter_async_context(balancing(home, servers))
        agents = home / "agents.toml"
        agents.write_text("\n".join(defined(name, [HANDLES[name]]) for name in NAMES))
        common = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "LETTA_API_KEY": token_hex(24),
            "LETTA_ENCRYPTION_KEY": token_hex(32),
            "LETTA_BASE_URL": f"http://127.0.0.1:{before['letta'].port}",
            "ISABELLA_DATABASE_URL": database.url(),
            "ISABELLA_TOKEN": TOKEN,
            "ISABELLA_GATEWAY": f"http://127.0.0.1:{before['gateway'].port}",
            "ISABELLA_AGENTS_FILE": str(agents),
            "ISABELLA_EMBEDDINGS": "off",
            "ISABELLA_REFLECT_AFTER": "0",
            **vendor_variables(vendors),
        }

        def made(kind: str, number: int, *command: str, **variables: str) -> Process:
            name = kind if len(servers[kind]) == 1 else f"{kind}-{number}"
            folder = home / name
            folder.mkdir(mode=0o700)
            if kind == "letta":
                (folder / "releases").symlink_to(releases.resolve(), target_is_directory=True)
            environment = {**common, "ISABELLA_HOME": str(folder), **variables}
            port = servers[kind][number - 1]
            process = Process(name, command, environment, folder, port, before[kind], number)
            process.start()
            stack.callback(_stop, process)
            return process

        lettas = [
            made("letta", number, "letta", "run", "--port", str(port))
            for number, port in enumerate(servers["letta"], 1)
        ]
        gateway = made("gateway", 1, "gateway", "run", "--port", str(servers["gateway"][0]))
        for process in (*lettas, gateway):
            await process.until_healthy()
        backends = [
            made("isabella", number, "up", "--no-practice", ISABELLA_PORT=str(port))
            for number, port in enumerate(servers["isabella"], 1)
        ]
        for process in backends:
            await process.until_healthy()
        yield Replicas(vendors, database, backends, lettas, gateway)


def _ports(count: int) -> list[int]:
    ports: list[int] = []
    for _ in range(count):
        ports.append(choose_port(18500, avoid=ports))
    return ports


def _stop(process: Process) -> None:
    if process.running is not None and process.running.poll() is None:
        process.running.kill()
        process.running.wait(_PATIENCE)


def every_strike() -> list[tuple[str, signal.Signals]]:
    """Return each process killed once, and a rolling restart of all."""
    names = [
        *(f"isabella-{one}" for one in range(1, ISABELLAS + 1)),
        *(f"letta-{one}" for one in range(1, LETTAS + 1)),
    ]
    names += ["postgres", "gateway"]
    return [*((name, signal.SIGKILL) for name in names), *((name, signal.SIGTERM) for name in names)]


async def measure(servers: Servers, *, quick: bool) -> Results:
    """Measure 200 turns, or 40 with fewer deaths."""
    await anyio.to_thread.run_sync(Server(servers.home).install_release)
    home = servers.home / "bench-replicas"
    with _empty(home):
        async with replicas(servers.home / "releases", home) as running:
            strikes = every_strike()
            clients, turns = (8, 40) if quick else (CLIENTS, TURNS)
            before = await anyio.to_thread.run_sync(running.database.size)
            costs = await running.costs(clients=clients, turns=turns)
            grown = (await anyio.to_thread.run_sync(running.database.size) - before) / turns / 1000
            pace = turns / running.seconds
            spent = "; ".join(f"{kind} {cost}" for kind, cost in costs.items()) + f"; {grown:.1f} kB in Postgres"
            print(f"  a turn: {spent}; {pace:.2f} turns a second", flush=True)
            outcome = await running.run(strikes[:6:3] if quick else strikes, clients=clients, turns=turns)
    results = Results()
    told = Counter(turn.told.split(":")[0] for turn in outcome.turns)
    again = sum(turn.sent > 1 for turn in outcome.turns)
    ends = ", ".join(f"{count} {end or 'without an end'}" for end, count in told.most_common())
    results.add(
        "replicas_turns", len(outcome.turns), f"{outcome.strikes} kills and restarts: {ends}; {again} sent again"
    )
    results.add("replicas_turns_per_second", pace, f"processor time of a turn: {spent}")
    results.add("replicas_lost_turns", len(outcome.lost), "; ".join(outcome.lost[:5]))
    results.add("replicas_overlaps", len(outcome.overlaps), "; ".join(outcome.overlaps[:5]))
    results.add("replicas_foreign_keys", len(outcome.foreign), "; ".join(outcome.foreign[:5]))
    return results


@contextmanager
def _empty(home: Path) -> Iterator[None]:
    """Make a folder, which is deleted at the end, and before if a killed run has left it."""
    with ExitStack() as stack:
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(mode=0o711, parents=True)
        stack.callback(shutil.rmtree, home, ignore_errors=True)
        yield
