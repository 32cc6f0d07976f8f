"""Deaths while agents talk: Postgres, Letta and the gateway are killed or stopped, at every moment of their lives.

An agent on each vendor has one turn after another, through `isabella up` as operators run it. Each says a word of its
own, so that afterwards the history of Letta shows whether its `stored` was true. Nothing but the backend itself, and
what `isabella letta rekey` does, brings a part back.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sysconfig
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx2 as httpx
import psutil
import psycopg

from bench.backend import serving
from bench.conversation import client_of, history, how_it_ended, texts_of_user, write_agents
from bench.gateway import home_with_releases
from bench.operator import Operator
from bench.results import Results
from bench.setup import Servers, Setup
from isabella.embedded import Letta, Server
from isabella.gateway import process
from isabella.practice import NAMES, PracticeVendors

DEATHS = 100
_STOPPED_SECONDS = 30.0
_PATIENCE = 600.0
_LOOK = 0.05
_PAUSE = 0.3
#: Seconds between the pieces of an answer, so that deaths meet turns in the middle.
_BETWEEN = 0.05
_BEFORE_LAST = "a08c972e781b"  # the last migration but one of Letta 0.16.8; the last one can be repeated
_ISABELLA = Path(sysconfig.get_path("scripts")) / "isabella"


@dataclass
class Turn:
    """A turn as its client saw it."""

    agent: str
    word: str
    kinds: list[str] = field(default_factory=list)
    text: str = ""
    error: str = ""
    end: dict[str, Any] | None = None
    status: int = 200
    failovers: list[str] = field(default_factory=list)

    @property
    def told(self) -> str:
        """How it ended, in a word or two; empty if it ended in no answer and no truthful event."""
        if self.status != 200:
            return f"refused ({self.error})" if self.error else ""
        if self.kinds[-1:] != ["end"] or self.kinds.count("end") != 1:
            return ""
        return how_it_ended(self.end, self.word, self.text, self.error)


@dataclass(frozen=True)
class Death:
    """One death.

    Attributes:
        part: the part whose process dies: `postgres`, `letta`, `gateway`, or `session`, one of Postgres's children.
        how: SIGKILL, or SIGSTOP for a while.
        moment: what is under way: `turns`, a `sync`, a `start` of Letta, a `migration` in one, or a `rekey`.
    """

    part: str
    how: signal.Signals
    moment: str = "turns"

    def __str__(self) -> str:
        return f"{self.how.name} {self.part} in {self.moment}"


@dataclass
class Outcome:
    """What came of all deaths.

    Attributes:
        deaths: how many there were.
        turns: every turn.
        ready: seconds from each death until `/ready` answered 200 again.
        noticed: seconds from the death of each supervised process until `/ready` answered 503.
        moved: the ports that changed.
        missing: turns that were called stored, and are not in the history.
        denied: turns that were called not stored, and are.
    """

    deaths: int = 0
    turns: list[Turn] = field(default_factory=list)
    ready: list[tuple[float, Death]] = field(default_factory=list)
    noticed: list[tuple[float, Death]] = field(default_factory=list)
    moved: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    denied: list[str] = field(default_factory=list)

    @property
    def untold(self) -> list[Turn]:
        """The turns that ended neither in an answer nor in an event that says why."""
        return [turn for turn in self.turns if not turn.told]

    @property
    def blamed(self) -> list[str]:
        """What turns said of vendors that did not answer, although none had failed."""
        return [f"{turn.word}: {failover}" for turn in self.turns for failover in turn.failovers]


class Chaos:
    """The servers of one home, and who talks to them."""

    def __init__(self, server: Server, vendors: PracticeVendors, home: Path, *, stopped: float) -> None:
        self._server = server
        self._operator = Operator(vendors, home / ".env")
        self._vendors = vendors
        self._home = home
        self._stopped = stopped
        self._over = anyio.Event()
        self._answers = 0
        self._answered = anyio.Event()
        self.outcome = Outcome()

    async def run(self, backend: httpx.AsyncClient, deaths: list[Death]) -> Outcome:
        """Let the agents talk until all deaths are over, and check what was stored."""
        for name in NAMES:
            self._vendors.fault(name, on="chat", between=_BETWEEN)
        before = self._ports()
        async with anyio.create_task_group() as tasks:
            for name in NAMES:
                tasks.start_soon(self._talk, backend, name)
            for number, death in enumerate(deaths, 1):
                await self._until_answered()
                await anyio.sleep(random.Random(number).uniform(0.0, 3.0))
                await self._die(death, backend)
                print(f"  {number:>3} {death}: ready after {self.outcome.ready[-1][0]:.1f} s", flush=True)
            self._over.set()
        await self._check()
        after = self._ports()
        moved = (name for name in before if before[name] != after[name])
        self.outcome.moved = [f"{name}: {before[name]}, then {after[name]}" for name in moved]
        return self.outcome

    async def _talk(self, backend: httpx.AsyncClient, agent: str) -> None:
        number = 0
        while not self._over.is_set():
            number += 1
            await self._say(backend, Turn(agent, f"{agent}{number}word"))
            await anyio.sleep(_PAUSE)

    async def _until_answered(self) -> None:
        """Wait for an answer, so that deaths are what interrupts a conversation."""
        answers = self._answers
        while self._answers == answers:
            await self._answered.wait()

    async def _say(self, backend: httpx.AsyncClient, turn: Turn) -> None:
        self.outcome.turns.append(turn)
        body = {"message": f"Say one two three four five six seven eight nine {turn.word}"}
        kind = ""
        with anyio.move_on_after(_PATIENCE):
            async with backend.stream("POST", f"/api/agents/{turn.agent}/turns", json=body) as response:
                turn.status = response.status_code
                if response.is_error:
                    await response.aread()
                    turn.error = str(response.json()["error"]["code"])
                    return
                async for line in response.aiter_lines():
                    if line.startswith("event: "):
                        kind = line[7:]
                    elif line.startswith("data: "):
                        said = json.loads(line[6:])
                        turn.kinds.append(kind)
                        if kind == "text":
                            turn.text += said["text"]
                        elif kind == "failover":
                            turn.failovers.append(f"{said['handle']} {said['code']}: {said['message']}")
                        elif kind == "error":
                            turn.error = f"{said['code']}: {said['message']}"
                        elif kind == "end":
                            turn.end = said
        if turn.told == "completed":
            self._answers += 1
            self._answered.set()
            self._answered = anyio.Event()

    async def _check(self) -> None:
        """Compare what every turn said of itself with Letta's history."""
        letta = self._server.running()
        assert letta is not None
        headers = {"Authorization": f"Bearer {letta.password.get_secret_value()}"}
        async with httpx.AsyncClient(base_url=letta.base_url, headers=headers, timeout=120) as direct:
            for name in NAMES:
                heard = texts_of_user(await history(direct, name))
                for turn in self.outcome.turns:
                    if turn.agent == name and turn.end is not None:
                        stored = any(turn.word in text for text in heard)
                        if turn.end.get("stored") and not stored:
                            self.outcome.missing.append(f"{turn.word}: {turn.told}")
                        if stored and turn.end.get("stored") is False:
                            self.outcome.denied.append(f"{turn.word}: {turn.told}")

    async def _die(self, death: Death, backend: httpx.AsyncClient) -> None:
        moments: dict[str, Callable[[Death], Awaitable[None]]] = {
            "sync": self._begin_sync,
            "start": self._begin_start,
        }
        if death.moment == "rekey":
            with self._rekeying():
                await self._until(lambda: self._pid("letta") is None, "the change of the key did not begin")
                await self._strike(death, backend)
            # What was interrupted is completed by the next start.
            return
        if death.moment == "migration":
            await self._die_in_migration(death, backend)
            return
        if death.moment in moments:
            await moments[death.moment](death)
        await self._strike(death, backend)

    async def _begin_sync(self, _death: Death) -> None:
        name = NAMES[self.outcome.deaths % len(NAMES)]
        self._operator.make(name)
        self._operator.accept(name)
        self._operator.write()

    async def _begin_start(self, _death: Death) -> None:
        former = self._pid("letta")
        assert former is not None
        os.kill(former, signal.SIGKILL)
        await self._until(lambda: self._pid("letta") not in (None, former), "Letta was not started again")

    async def _die_in_migration(self, death: Death, backend: httpx.AsyncClient) -> None:
        """Let Letta's next start apply the last migration again, which waits for a lock, and strike meanwhile."""
        former, letta = self._pid("letta"), self._server.running()
        assert former is not None
        assert letta is not None
        with await self._connect(letta) as connection:
            connection.execute("UPDATE alembic_version SET version_num = %s", (_BEFORE_LAST,))
            connection.commit()
            connection.execute("LOCK TABLE alembic_version IN SHARE MODE")
            os.kill(former, signal.SIGKILL)
            waiting = "SELECT 1 FROM pg_locks WHERE NOT granted AND relation = 'alembic_version'::regclass"
            await self._until(
                lambda: connection.execute(waiting).fetchone() is not None, "Letta did not migrate its database"
            )
            await self._strike(death, backend, then=connection.close)
        with await self._connect(letta) as connection:
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
            assert row not in (None, (_BEFORE_LAST,)), "Letta started without its last migration"

    async def _connect(self, letta: Letta) -> psycopg.Connection[Any]:
        """Return a connection to Letta's database, which may recover yet from the death before."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                return psycopg.connect(letta.database_url.get_secret_value())
            except psycopg.OperationalError:
                assert time.monotonic() < deadline, "Postgres accepts no connection"
                await anyio.sleep(_LOOK)

    @contextmanager
    def _rekeying(self) -> Iterator[None]:
        command = [str(_ISABELLA), "letta", "rekey", "--yes", "--home", str(self._server.home)]
        environment = {"PATH": os.environ["PATH"], "HOME": str(self._home), "ISABELLA_HOME": str(self._server.home)}
        with (self._home / "rekey.log").open("a") as log:
            running = subprocess.Popen(command, cwd=self._home, env=environment, stdout=log, stderr=log)
            try:
                yield
            finally:
                running.wait(_PATIENCE)

    async def _strike(
        self, death: Death, backend: httpx.AsyncClient, then: Callable[[], None] = lambda: None
    ) -> None:
        pid = await self._victim(death.part)
        began = time.monotonic()
        os.kill(pid, death.how)
        then()
        self.outcome.deaths += 1
        async with anyio.create_task_group() as tasks:
            if death.how is signal.SIGSTOP:
                tasks.start_soon(_wake, pid, self._stopped)
            if death.part != "session" and death.moment in ("turns", "sync"):
                await self._until_ready(backend, ready=False)
                self.outcome.noticed.append((time.monotonic() - began, death))
            await self._until_ready(backend, ready=True)
            self.outcome.ready.append((time.monotonic() - began, death))

    async def _victim(self, part: str) -> int:
        await self._until(lambda: self._pid(part) is not None, f"{part} does not run")
        pid = self._pid(part)
        assert pid is not None
        return pid

    async def _until_ready(self, backend: httpx.AsyncClient, *, ready: bool) -> None:
        deadline = time.monotonic() + _PATIENCE
        while ((said := await backend.get("/ready")).status_code == 200) is not ready:
            assert time.monotonic() < deadline, said.text
            await anyio.sleep(_LOOK)

    async def _until(self, condition: Callable[[], bool], otherwise: str) -> None:
        deadline = time.monotonic() + _PATIENCE
        while not await anyio.to_thread.run_sync(condition):
            assert time.monotonic() < deadline, otherwise
            await anyio.sleep(_LOOK)

    def _ports(self) -> dict[str, int | None]:
        status = self._server.status()
        gateway = process.daemon(self._home).recorded()
        return {
            "letta": status.letta.port,
            "postgres": status.postgres.port,
            "gateway": None if gateway is None else gateway.port,
        }

    def _pid(self, part: str) -> int | None:
        if part == "gateway":
            running = process.daemon(self._home).recorded()
            return None if running is None else running.process.pid
        status = self._server.status()
        if part == "letta":
            return status.letta.pid
        if status.postgres.pid is None or part == "postgres":
            return status.postgres.pid
        sessions = [
            child.pid
            for child in psutil.Process(status.postgres.pid).children()
            if " letta 127.0.0.1" in " ".join(child.cmdline())
        ]
        return max(sessions, default=None)


async def _wake(pid: int, seconds: float) -> None:
    await anyio.sleep(seconds)
    # It may have been replaced meanwhile.
    if psutil.pid_exists(pid):
        os.kill(pid, signal.SIGCONT)


def planned(deaths: int, *, seed: int = 1) -> list[Death]:
    """Return so many deaths: each kind in turn, in an order that depends on the seed only."""
    kill, stop = signal.SIGKILL, signal.SIGSTOP
    kinds = [
        Death("letta", kill),
        Death("gateway", kill),
        Death("postgres", kill),
        Death("letta", stop),
        Death("postgres", kill, "sync"),
        Death("letta", kill, "start"),
        Death("session", kill),
        Death("gateway", stop),
        Death("letta", kill, "sync"),
        Death("postgres", stop),
        Death("postgres", kill, "start"),
        Death("gateway", kill, "sync"),
        Death("postgres", kill, "rekey"),
        Death("letta", kill, "migration"),
        Death("postgres", kill, "migration"),
    ]
    chosen = [kinds[number % len(kinds)] for number in range(deaths)]
    if deaths > len(kinds):
        random.Random(seed).shuffle(chosen)
    return chosen


async def measure(servers: Servers, *, quick: bool) -> Results:
    """Measure 100 deaths, or six."""
    deaths, stopped = (planned(6), 5.0) if quick else (planned(DEATHS), _STOPPED_SECONDS)
    outcome = await run(servers.home, deaths, stopped=stopped)
    results = Results()
    told = Counter(re.sub(r": .*", ")", turn.told, flags=re.DOTALL) for turn in outcome.turns)
    results.add("chaos_deaths", outcome.deaths, f"{len(outcome.turns)} turns: {_told(told)}")
    wrong = [*(turn.word for turn in outcome.untold), *outcome.missing, *outcome.denied]
    results.add("chaos_lost", len(wrong), "; ".join(wrong[:5]))
    slowest = max(outcome.ready)
    results.add("chaos_ready_seconds_max", slowest[0], str(slowest[1]), [one for one, _ in outcome.ready])
    noticed = max(outcome.noticed, default=(0.0, None))
    results.add("chaos_notice_seconds_max", noticed[0], str(noticed[1]), [one for one, _ in outcome.noticed])
    results.add("chaos_ports_moved", len(outcome.moved), "; ".join(outcome.moved))
    return results


async def run(home: Path, deaths: list[Death], *, stopped: float) -> Outcome:
    """Start everything in a home of its own below this one, and let the parts die one after another."""
    server = Server(home / "bench-chaos")
    with home_with_releases(home, server), PracticeVendors() as vendors:
        # As if `isabella letta up` had started them: the backend supervises them all the same.
        letta = server.up()
        setup = Setup.in_home(letta, server.home)
        chaos = Chaos(server, vendors, server.home, stopped=stopped)
        variables = write_agents(setup.folder) | {"ISABELLA_GATEWAY": "on", "ISABELLA_TURN_WAIT": "180"}
        with serving(setup, variables, embedded=True) as (address, _process):
            async with client_of(address) as backend:
                return await chaos.run(backend, deaths)


def _told(ends: Counter[str]) -> str:
    return ", ".join(f"{count} {end or 'without an end'}" for end, count in ends.most_common())
