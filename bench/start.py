"""The start: Isabella's against Letta's own, started by hand; and the memory of the whole stack."""

from __future__ import annotations

import os
import secrets
import subprocess
import sysconfig
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import httpx2 as httpx
import psutil
from anyio.abc import Process
from pydantic import SecretStr

from bench.backend import TOKEN, serving
from bench.conversation import client_of, through, write_agents
from bench.gateway import home_with_releases
from bench.operator import Operator
from bench.results import Results
from bench.setup import Servers, Setup
from bench.timing import Way, alternate, medians
from isabella.embedded import Letta, Server, postgres
from isabella.embedded.ports import choose_port
from isabella.practice import NAMES, PracticeVendors

_TURNS = 100
_LOOK = 0.02
_PORT = 8000
_UP_SECONDS = 180.0
#: The commands `letta` and `alembic`: a release is not installed as a package, and has a folder named alembic.
_LETTA = "from letta.main import app; app()"
_ALEMBIC = "from alembic.config import main; main()"
_COMMAND = Path(sysconfig.get_path("scripts")) / "isabella"


async def measure(servers: Servers, *, quick: bool) -> Results:
    """Measure on instances of their own, with the release of the others."""
    results = Results()
    rounds = 2 if quick else 5
    ours, by_hand = Server(servers.home / "bench-start"), Server(servers.home / "bench-hand")
    with home_with_releases(servers.home, ours), home_with_releases(servers.home, by_hand):
        letta = by_hand.up()
        # While that runs, so that ours gets another port.
        ours.up()
        operator = ByHand(by_hand, letta)
        existing, bare = await alternate(
            rounds, Way(lambda: _up(ours), before=lambda: _down(ours)), Way(operator.start, before=operator.stop)
        )
        results.compare("start_over_bare", existing, bare, medians(ours=existing, by_hand=bare))
        first, bare = await alternate(
            rounds,
            Way(lambda: _up(ours), before=lambda: _erase(ours)),
            Way(operator.first_start, before=operator.new_database),
        )
        results.compare("first_start_over_bare", first, bare, medians(ours=first, by_hand=bare))
        await operator.stop()
        results.include(await _measure_backend(ours, rounds))
    return results


async def _up(server: Server) -> None:
    await anyio.run_process(
        [_COMMAND, "letta", "up", "--home", server.home, "--instance", server.instance], env=_environment(server.home)
    )


async def _down(server: Server) -> None:
    server.down()


async def _erase(server: Server) -> None:
    server.erase()


class ByHand:
    """An operator who starts Letta on a Postgres that runs already, as Letta's documentation says.

    A careful one turns `pooling` on (fact R5); as shipped, Letta connects anew for each query.
    """

    def __init__(self, server: Server, letta: Letta, *, pooling: bool = True) -> None:
        self._paths = server.paths
        self._database = urlsplit(letta.database_url.get_secret_value())._replace(query="").geturl()
        self._letta: Process | None = None
        self._pooling = pooling
        self._log = server.paths.logs / f"by-hand-{'pooled' if pooling else 'shipped'}.log"
        status = server.status()
        port = urlsplit(letta.base_url).port
        assert port is not None
        self.port = port if pooling else choose_port(port + 1)
        if status.letta.pid is not None:
            process = psutil.Process(status.letta.pid)
            process.terminate()
            process.wait(_UP_SECONDS)

    async def start(self) -> None:
        """Run `letta server` until it answers."""
        await self._run("-c", _LETTA, "server", "--port", str(self.port), options="?ssl=disable")
        address = f"http://127.0.0.1:{self.port}/v1/health/"
        async with httpx.AsyncClient(trust_env=False) as client:
            with anyio.fail_after(_UP_SECONDS):
                while not await _answers(client, address):
                    assert self._letta is not None
                    assert self._letta.returncode is None, self._said()
                    await anyio.sleep(_LOOK)

    async def first_start(self) -> None:
        """Run the migrations, and then the server."""
        await self._run("-c", _ALEMBIC, "upgrade", "head")
        assert self._letta is not None
        assert await self._letta.wait() == 0, self._said()
        await self.start()

    async def stop(self) -> None:
        """End the server, if it runs."""
        if self._letta is not None and self._letta.returncode is None:
            self._letta.terminate()
            await self._letta.wait()

    async def new_database(self) -> None:
        """Use an empty database from now on."""
        await self.stop()
        parts = urlsplit(self._database)
        assert parts.port is not None
        name = f"by_hand_{secrets.token_hex(4)}"
        password = SecretStr(self._paths.superuser_password_file.read_text().strip())
        for database, statement in (
            ("postgres", f"CREATE DATABASE {name} OWNER {parts.username}"),
            (name, "CREATE EXTENSION vector"),
        ):
            url = postgres.database_url(parts.port, password, user="postgres", name=database)
            with postgres.connect(url) as connection:
                connection.execute(statement)
        self._database = parts._replace(path=f"/{name}").geturl()

    async def _run(self, *arguments: str, options: str = "") -> None:
        with self._log.open("w") as log:
            self._letta = await anyio.open_process(
                [self._paths.python, *arguments],
                env=_environment(self._paths.server_home)
                | {
                    "LETTA_PG_URI": self._database + options,
                    "LETTA_DISABLE_SQLALCHEMY_POOLING": str(not self._pooling).lower(),
                },
                cwd=self._paths.program,
                stdout=log,
                stderr=log,
            )

    def _said(self) -> str:
        return self._log.read_text()[-2000:]


async def _answers(client: httpx.AsyncClient, address: str) -> bool:
    try:
        return (await client.get(address)).is_success
    except httpx.TransportError:
        return False


def _environment(home: Path) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": str(home)}


# --- the backend ----------------------------------------------------------------------------------------------------


async def _measure_backend(server: Server, rounds: int) -> Results:
    results = Results()
    with PracticeVendors() as vendors:
        Operator(vendors, server.home / ".env")
        variables = write_agents(server.home) | {"ISABELLA_GATEWAY": "on", "ISABELLA_FIRST_TOKEN_TIMEOUT": "60"}
        seconds = [await _until_page(server, variables) for _ in range(rounds)]
        results.add("serving_seconds", max(seconds), "the slowest", seconds)
        setup = Setup.in_home(server.up(), server.home)
        with serving(setup, variables, embedded=True) as (address, process):
            async with client_of(address) as backend:
                for number in range(_TURNS):
                    failure, _elsewhere = await through(backend, NAMES[number % len(NAMES)])
                    assert failure is None, failure
            parts = memory_of_parts(process, server)
            results.add(
                "stack_rss_mb", sum(parts.values()), ", ".join(f"{name} {mb:.0f}" for name, mb in parts.items())
            )
    return results


async def _until_page(server: Server, variables: Mapping[str, str]) -> float:
    """Return the seconds from `isabella up` on a stopped Letta to the page that shows its progress."""
    server.down()
    async with _backend(server, variables) as (port, process):
        began = psutil.Process(process.pid).create_time()
        async with httpx.AsyncClient(trust_env=False) as client:
            while not await _shows_page(client, f"http://127.0.0.1:{port}/console"):
                assert process.returncode is None, "the backend has ended"
                await anyio.sleep(_LOOK)
        return time.time() - began


async def _shows_page(client: httpx.AsyncClient, address: str) -> bool:
    try:
        headers = {"Accept": "text/html", "Authorization": f"Bearer {TOKEN}"}
        answer = await client.get(address, headers=headers, follow_redirects=True)
    except httpx.TransportError:
        return False
    return "text/html" in answer.headers.get("content-type", "")


@asynccontextmanager
async def _backend(server: Server, variables: Mapping[str, str]) -> AsyncIterator[tuple[int, Process]]:
    port = choose_port(_PORT)
    environment = {
        **_environment(server.home),
        "ISABELLA_HOME": str(server.home),
        "ISABELLA_PORT": str(port),
        "ISABELLA_TOKEN": TOKEN,
        **variables,
    }
    process = await anyio.open_process(
        [_COMMAND, "up", "--no-practice"],
        env=environment,
        cwd=server.home,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield port, process
    finally:
        process.terminate()
        await process.wait()


def memory_of_parts(backend: psutil.Process, server: Server) -> dict[str, float]:
    """Return the memory of each part in MB: what its processes have for themselves, and their share of the rest."""
    parts = _processes_of_parts(backend, server)
    return {name: sum(_share(process) for process in processes) / 1e6 for name, processes in parts.items()}


def cpu_of_parts(backend: psutil.Process, server: Server) -> dict[str, float]:
    """Return the processor time of each part so far in seconds, with that of sessions of Postgres that have ended."""
    parts = _processes_of_parts(backend, server)
    return {name: sum(_processor_seconds(process) for process in processes) for name, processes in parts.items()}


def _processes_of_parts(backend: psutil.Process, server: Server) -> dict[str, list[psutil.Process]]:
    status = server.status()
    roots = {"letta": status.letta.pid, "postgres": status.postgres.pid}
    processes = {name: _tree(psutil.Process(pid)) for name, pid in roots.items() if pid is not None}
    own = {process for tree in processes.values() for process in tree}
    processes["backend and gateway"] = [process for process in _tree(backend) if process not in own]
    return processes


def _tree(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def _processor_seconds(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system + times.children_user + times.children_system)


def _share(process: psutil.Process) -> int:
    try:
        memory = process.memory_full_info()
    except psutil.NoSuchProcess:
        return 0
    return int(getattr(memory, "pss", memory.rss))
