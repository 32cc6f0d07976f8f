"""Nothing is sent to a process that listens where a server of ours should."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import anyio
import httpx
import httpx2
import psycopg
import pytest
from pydantic import SecretStr

from isabella.chat.client import BackendClient
from isabella.cli.backend import running_backend
from isabella.config.settings import load_settings
from isabella.doctor.collect.letta import LettaCollector
from isabella.embedded import postgres
from isabella.embedded.instance import InstancePaths, make_private
from isabella.embedded.letta_process import ServerRun
from isabella.errors import ConfigurationError, IsabellaError, LettaUnreachable, UnverifiedPeer
from isabella.gateway import process
from isabella.gateway.client import GatewayClient
from isabella.letta.client import Connection, LettaClient
from isabella.locks.postgres import open_connection
from isabella.practice import daemon
from isabella.server.running_backend import address_published, published_backend
from isabella.system import peers
from isabella.system.peers import Peer, async_hooks, hooks, listens
from isabella.system.processes import ChildProcess, save
from tests.support.command import Command
from tests.support.impostor import impostor, server

SECRET = "a-secret-of-ours"
HEADERS = {"Authorization": f"Bearer {SECRET}"}


def peer(record: Path) -> Peer:
    """A server of ours whose process that file names."""
    return Peer("the server", record, "Start it again.")


def ask(client: str, url: str, of: Peer) -> int:
    """The status of a request with the secret in it."""
    if client.startswith("async"):

        async def asked() -> int:
            async with library.AsyncClient(event_hooks=async_hooks(of), headers=HEADERS) as http:
                return int((await http.post(url, content=SECRET)).status_code)

        library: Any = httpx if client == "async httpx" else httpx2
        return anyio.run(asked)
    library = httpx if client == "httpx" else httpx2
    with library.Client(event_hooks=hooks(of), headers=HEADERS) as http:
        return int(http.post(url, content=SECRET).status_code)


@pytest.mark.parametrize("client", ["httpx", "httpx2", "async httpx", "async httpx2"])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_only_the_process_that_is_written_down(tmp_path: Path, client: str, host: str) -> None:
    """The process that the record names gets the request; after its end whoever has its port gets no byte."""
    record = tmp_path / "process.json"
    at = f"http://[{host}]" if ":" in host else f"http://{host}"
    with server(record, host) as (process, port):
        of = peer(record)
        assert ask(client, f"{at}:{port}/", of) == 200
        process.kill()
        process.wait()
        with impostor(port, host) as other:
            with pytest.raises(UnverifiedPeer, match=rf"Process {os.getpid()} .*:{port}.*has ended") as refused:
                ask(client, f"{at}:{port}/", of)
            assert refused.value.remedy == "Start it again."
            assert other.heard == [b""]


def test_every_new_connection_of_an_open_client(tmp_path: Path) -> None:
    """A client whose server ends does not go on with whoever has the port then; with the next server it does."""
    record = tmp_path / "process.json"
    with server(record) as (process, port), httpx2.Client(event_hooks=hooks(peer(record)), headers=HEADERS) as client:
        url = f"http://127.0.0.1:{port}/"
        assert client.get(url).status_code == 200
        process.kill()
        process.wait()
        with impostor(port) as other:
            for _ in range(2):
                with pytest.raises((UnverifiedPeer, httpx2.TransportError)):
                    client.get(url)
            assert set(other.heard) == {b""}
        with server(record, port=port):
            assert client.get(url).status_code == 200


def test_a_server_that_began_to_listen_after_the_connection_was_made(tmp_path: Path) -> None:
    """Who listens when the connection stands says nothing about who has accepted it."""
    record = tmp_path / "process.json"
    with server(record) as (_, port):
        of = peer(record)
        with pytest.raises(UnverifiedPeer, match="began to listen only after"):
            of.check(None, "127.0.0.1", port)
        of.check(of.before("127.0.0.1", port), "127.0.0.1", port)


@pytest.fixture(params=["asked for", "read"])
def sockets(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux is asked for what listens on a port; where it allows no such question, all connections are read."""

    def refused(port: int, *, ipv6: bool) -> list[tuple[str, int]]:
        raise PermissionError(port, ipv6)

    if request.param == "read":
        monkeypatch.setattr(peers, "listening_sockets", refused)


@pytest.mark.usefixtures("sockets")
def test_a_pid_of_somebody_else(tmp_path: Path) -> None:
    """A later process with the same pid, another address, and another port are not the server."""
    with server(tmp_path / "process.json") as (process, port):
        found = ChildProcess.of(process.pid)
        assert listens(found, "127.0.0.1", port)
        assert not listens(ChildProcess(found.pid, found.started - 1000), "127.0.0.1", port)
        assert not listens(found, "127.0.0.2", port)
        assert not listens(found, "::1", port)
        assert not listens(found, "127.0.0.1", port + 1)
    assert not listens(found, "127.0.0.1", port)


@pytest.mark.usefixtures("sockets")
@pytest.mark.parametrize(("listening", "host"), [("0.0.0.0", "127.0.0.1"), ("::", "::1")])
def test_a_server_that_listens_everywhere(tmp_path: Path, listening: str, host: str) -> None:
    """What listens on all addresses listens on this one."""
    with server(tmp_path / "process.json", listening) as (process, port):
        assert listens(ChildProcess.of(process.pid), host, port)


@pytest.mark.usefixtures("sockets")
def test_a_server_among_many_sockets(tmp_path: Path) -> None:
    """However many sockets listen, and however many connections there are, the server's own is found."""
    with ExitStack() as stack, server(tmp_path / "process.json") as (process, port):
        for _ in range(100):
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            stack.enter_context(socket.create_connection(listener.getsockname()))
        found = ChildProcess.of(process.pid)
        assert listens(found, "127.0.0.1", port)
        assert not listens(found, "127.0.0.1", listener.getsockname()[1])
        assert listens(ChildProcess.of(os.getpid()), "127.0.0.1", listener.getsockname()[1])


def test_nobody_listens(tmp_path: Path) -> None:
    """Where nobody listens, that is what the client tells."""
    record = tmp_path / "process.json"
    with server(record) as (process, port):
        process.kill()
        process.wait()
    with pytest.raises(httpx2.ConnectError):
        ask("httpx2", f"http://127.0.0.1:{port}/", peer(record))


# --- Letta ----------------------------------------------------------------------------------------------------------


async def by_the_store(connection: Connection) -> None:
    """Ask for the providers."""
    async with LettaClient.open(connection) as letta:
        await letta.providers.all()


async def by_the_agents(connection: Connection) -> None:
    """Say something to an agent."""
    async with LettaClient.open(connection) as letta:
        await letta.messages.send("agent-1", SECRET)


@pytest.mark.parametrize("reach", [by_the_store, by_the_agents])
def test_letta_has_ended(tmp_path: Path, reach: Callable[[Connection], Awaitable[None]]) -> None:
    """Whoever has taken Letta's port gets neither its password nor a message: Letta is told to be unreachable."""
    record = tmp_path / "letta.json"
    with impostor() as other:
        save(record, ChildProcess(os.getpid(), 1.0))
        with pytest.raises(LettaUnreachable, match=r"listens at .* has ended"):
            anyio.run(reach, connection(tmp_path, other.port, peer(record)))
        assert set(other.heard) == {b""}


def test_the_doctor_looks_and_tells(tmp_path: Path) -> None:
    """The doctor sends nothing there either, and its finding is who listens."""
    with impostor() as other:
        seen = anyio.run(LettaCollector(connection(tmp_path, other.port, peer(tmp_path / "letta.json"))).collect, [])
        assert "does not name the process of" in str(seen.error)
        assert set(other.heard) == {b""}


@pytest.mark.parametrize(
    "arguments", [("providers", "status"), ("agents", "list"), ("agents", "show", "Isabella"), ("doctor",)]
)
def test_commands_where_letta_does_not_listen(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """A Letta that is alive and listens no more is not running; who listens in its place gets no byte."""
    paths = InstancePaths(tmp_path / "home")
    make_private(paths.folder)
    with impostor() as other, server(tmp_path / "other.json") as (process, _):
        ServerRun(ChildProcess.of(process.pid), other.port, "none").save(paths.run_file)
        command = Command(tmp_path, {"ISABELLA_HOME": str(paths.home)})
        command.configure(GROQ_API_KEY="gsk_practice-not-a-real-key-0000")
        ended = command.run(*arguments)
        assert ended.code != 0
        assert "none is running here" in ended.out + ended.err
        assert other.heard == []


def connection(home: Path, port: int, of: Peer) -> Connection:
    """A Letta of our own at this port."""
    return Connection(f"http://127.0.0.1:{port}", SecretStr(SECRET), None, None, home, 5.0, embedded=True, peer=of)


# --- the backend ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [("chat",), ("login",)])
@pytest.mark.parametrize("old", [False, True])
def test_the_backend_has_ended(tmp_path: Path, arguments: tuple[str, ...], old: bool) -> None:
    """Whoever has taken the backend's port gets no byte, and no link leads there; what to do next is said."""
    home = tmp_path / "home"
    with server(tmp_path / "other.json") as (process, port):
        with address_published(home, f"http://127.0.0.1:{port}"):
            record = json.loads((home / "backend.json").read_text())
        record |= {"pid": process.pid, "started": ChildProcess.of(process.pid).started}
        if old:
            # As earlier versions wrote it.
            del record["started"]
        (home / "backend.json").write_text(json.dumps(record))
        process.kill()
        process.wait()
        with impostor(port) as other:
            ended = Command(tmp_path, {"ISABELLA_HOME": str(home), "ISABELLA_TOKEN": SECRET}).run(*arguments)
            assert ended.code == 1
            assert f"listens at 127.0.0.1:{port}" in ended.err
            assert ("does not name the process of" if old else "has ended") in ended.err
            assert "isabella up" in ended.err
            assert SECRET not in ended.out + ended.err
            assert set(other.heard) == {b""}


def test_the_backend_ends_while_somebody_talks(tmp_path: Path) -> None:
    """A chat whose backend ends says nothing to whoever has its port then."""
    with server(tmp_path / "backend.json") as (process, port):
        (tmp_path / "token").write_text(SECRET)
        address = f"http://127.0.0.1:{port}"
        text = (tmp_path / "backend.json").read_text()
        (tmp_path / "backend.json").write_text(json.dumps(json.loads(text) | {"address": address}))
        found = published_backend(load_settings(environment={}, home=tmp_path))
        assert found is not None
        with BackendClient(found.address, found.token, "Isabella", found.peer) as line:
            assert line.about() == {}
            process.kill()
            process.wait()
            with impostor(port) as other:
                with pytest.raises(IsabellaError):
                    line.about()
                with pytest.raises(IsabellaError, match=f"listens at 127.0.0.1:{port}"):
                    list(line.send("My name is Ada."))
                with pytest.raises(IsabellaError, match=f"listens at 127.0.0.1:{port}"):
                    line.remember("My name is Ada.")
                assert set(other.heard) == {b""}


def test_a_login_link_leads_to_a_backend_that_listens(tmp_path: Path) -> None:
    """The link is printed for a backend that answers, and only then."""
    environment = {"ISABELLA_HOME": str(tmp_path), "ISABELLA_TOKEN": SECRET}
    with server(tmp_path / "backend.json") as (process, port):
        record = json.loads((tmp_path / "backend.json").read_text())
        (tmp_path / "backend.json").write_text(json.dumps(record | {"address": f"http://127.0.0.1:{port}"}))
        shown = Command(tmp_path, environment).run("login")
        assert shown.out.startswith(f"http://127.0.0.1:{port}/login?code=")
        assert SECRET not in shown.out
        process.kill()
        process.wait()
        gone = Command(tmp_path, environment).run("login")
    assert (gone.code, gone.out) == (1, "")
    assert "No backend is running" in gone.err


# --- the practice vendors -------------------------------------------------------------------------------------------


def test_the_practice_vendors_do_not_listen(tmp_path: Path) -> None:
    """Whoever listens where practice vendors should does not get their control token."""
    folder = tmp_path / "practice"
    folder.mkdir()
    with impostor() as other, server(folder / "process.json"):
        (folder / "state.json").write_text(json.dumps({"port": other.port, "token": SECRET}))
        assert daemon.status(tmp_path) is None
        assert set(other.heard) == {b""}


# --- Postgres -------------------------------------------------------------------------------------------------------


_AUTHENTICATION = {
    "in plain text": b"R\0\0\0\x08\0\0\0\x03",
    "as MD5": b"R\0\0\0\x0c\0\0\0\x05salt",
    "by SCRAM": b"R\0\0\0\x17\0\0\0\x0aSCRAM-SHA-256\0\0",
}


#: Two clients at each port, with a server that lives and one that has ended: a hundred tries at each port.
_ROUNDS = 25


def tries(home: Path, ports: dict[str, int]) -> list[Callable[[], object]]:
    """Every client of ours: each sends a secret or a message to a server of this home, if that is there."""
    settings = load_settings(environment={"ISABELLA_TOKEN": SECRET}, home=home, gateway="on")
    letta = connection(home, ports["letta"], peer(home / "letta.json"))
    backend = published_backend(settings)
    assert backend is not None

    async def ask_gateway() -> object:
        client = GatewayClient(settings)
        try:
            return await client.traffic()
        finally:
            await client.close()

    def talk() -> object:
        with BackendClient(backend.address, backend.token, "Isabella", backend.peer) as client:
            return [*client.send(SECRET)]

    control = daemon.ControlClient(
        f"http://127.0.0.1:{ports['practice']}", SecretStr(SECRET), peer(home / "practice" / "process.json")
    )
    return [
        lambda: anyio.run(by_the_store, letta),
        lambda: anyio.run(by_the_agents, letta),
        lambda: anyio.run(ask_gateway),
        lambda: process.daemon(home).status(),
        lambda: running_backend(settings),
        talk,
        lambda: daemon.status(home),
        lambda: control.accept("groq", [SECRET]),
    ]


@pytest.mark.parametrize("alive", [True, False])
def test_a_hundred_tries_of_every_client(tmp_path: Path, alive: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has the ports of servers that have ended, or that live and do not listen, gets no byte."""
    # Their names in the messages take a look at all processes and sockets of the machine.
    monkeypatch.setattr(peers, "_listener_name", lambda _port: "Another process")
    records = {
        "letta": tmp_path / "letta.json",
        "gateway": tmp_path / "gateway" / "process.json",
        "backend": tmp_path / "backend.json",
        "practice": tmp_path / "practice" / "process.json",
    }
    with ExitStack() as stack:
        others = {name: stack.enter_context(impostor()) for name in records}
        ports = {name: other.port for name, other in others.items()}
        for name, record in records.items():
            record.parent.mkdir(exist_ok=True)
            ended, _ = stack.enter_context(server(record))
            (record.parent / "state.json").write_text(json.dumps({"port": ports[name], "token": SECRET}))
            if name == "backend":
                here = ChildProcess.of(ended.pid)
                record.write_text(json.dumps({"address": f"http://127.0.0.1:{ports[name]}", **asdict(here)}))
            if not alive:
                ended.kill()
                ended.wait()
        for _ in range(_ROUNDS):
            for attempt in tries(tmp_path, ports):
                with suppress(IsabellaError):
                    assert attempt() is None
        for name, other in others.items():
            heard = other.heard
            # No connection is made to a daemon whose process has ended.
            assert set(heard) == {b""} if heard else name == "gateway", name
            assert len(heard) >= 2 * _ROUNDS or not alive, name


@pytest.mark.parametrize("asks", _AUTHENTICATION)
def test_a_hundred_tries_at_the_database(asks: str) -> None:
    """However the password is asked for, it is not sent."""
    with impostor(answer=_AUTHENTICATION[asks]) as other:
        address = postgres.database_url(other.port, SecretStr(SECRET))
        for _ in range(100):
            with pytest.raises(psycopg.OperationalError):
                postgres.connect(address)
        assert len(other.heard) == 100
        assert not any(SECRET.encode() in said for said in other.heard)


@pytest.mark.parametrize("asks", [3, 5])
def test_the_password_of_the_database(asks: int) -> None:
    """Who listens on Postgres's port and asks for the password, in plain text or as MD5, does not get it."""
    request = b"R" + (8 if asks == 3 else 12).to_bytes(4, "big") + asks.to_bytes(4, "big")
    with impostor(answer=request if asks == 3 else request + b"salt") as other:
        address = postgres.database_url(other.port, SecretStr(SECRET))
        with pytest.raises(psycopg.OperationalError):
            postgres.connect(address)
        with pytest.raises(ConfigurationError):
            anyio.run(
                open_connection, SecretStr(f"{postgres.psycopg_url(address).get_secret_value()}&sslmode=disable")
            )
        assert len(other.heard) == 2
        # Name of user and database, and nothing after the request.
        assert all(said.count(b"isabella") == 1 and said.endswith(b"\0\0") for said in other.heard)
