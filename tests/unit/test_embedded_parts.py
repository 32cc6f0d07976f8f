"""The small parts of the embedded server: paths, ports, secrets, records, environments, logs, orphan processes."""

from __future__ import annotations

import asyncio
import io
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from threading import Thread
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import Mock

import psutil
import pytest
from pydantic import SecretStr
from pytest_httpserver import HTTPServer

from isabella.cli import letta as letta_commands
from isabella.embedded import (
    DEFAULT_INSTANCE,
    DEFAULT_RELEASE,
    Letta,
    Server,
    child_processes,
    instance,
    launch,
    letta_process,
    ports,
    postgres,
)
from isabella.embedded.instance import InstancePaths, make_home, make_private
from isabella.embedded.instance_postgres import InstancePostgres
from isabella.embedded.letta_process import ServerRun
from isabella.embedded.postgres import Cluster, Postmaster
from isabella.embedded.progress import Step
from isabella.errors import EmbeddedError, StartFailed
from isabella.system import processes
from isabella.system.processes import ChildProcess

CANARY = "canary-5d1c7a90-do-not-leak"


def test_each_release_and_instance_has_its_own_data_and_shares_the_program(tmp_path: Path) -> None:
    """Nothing of two instances lies in the same place, apart from the release."""
    one, other, older = (
        InstancePaths(tmp_path),
        InstancePaths(tmp_path, instance="x"),
        InstancePaths(tmp_path, release="0.16.0"),
    )
    assert len({paths.folder for paths in (one, other, older)}) == 3
    assert len({paths.lock for paths in (one, other, older)}) == 3
    assert one.program == other.program != older.program


@pytest.mark.parametrize("bad", ["../0.16.8", "latest", "", "0.16", ">=0.16.8", "0.16.8 "])
def test_a_release_that_is_no_version_is_refused(bad: str, tmp_path: Path) -> None:
    """It becomes part of a path and of a command."""
    with pytest.raises(EmbeddedError, match="not a Letta release"):
        InstancePaths(tmp_path, release=bad)


@pytest.mark.parametrize("bad", ["../x", "", "a b", "-x", "A", "a/b"])
def test_an_instance_that_cannot_be_a_folder_is_refused(bad: str, tmp_path: Path) -> None:
    """It becomes part of a path."""
    with pytest.raises(EmbeddedError, match="cannot name an instance"):
        InstancePaths(tmp_path, instance=bad)


def test_a_home_that_is_there_keeps_its_mode(tmp_path: Path) -> None:
    """It may be anybody's folder; one that Isabella makes is private, and so is all below."""
    tmp_path.chmod(0o755)
    make_home(tmp_path)
    assert tmp_path.stat().st_mode & 0o777 == 0o755
    make_home(tmp_path / "new")
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    (tmp_path / "open").mkdir(mode=0o755)
    make_private(tmp_path / "open")
    assert (tmp_path / "open").stat().st_mode & 0o777 == 0o700


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which somebody listens."""
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_a_taken_port_is_not_chosen(taken: int) -> None:
    """Neither one that is in use, nor one that another instance counts on."""
    assert not ports.is_port_free(taken)
    other = ports.choose_port(taken)
    assert other != taken
    assert ports.is_port_free(other)
    assert ports.choose_port(other) == other
    assert ports.choose_port(other, avoid={other}) != other


@pytest.mark.skipif(not Path("/proc/sys/net/ipv4").is_dir(), reason="the range is read from /proc")
def test_a_chosen_port_is_given_to_no_outgoing_connection(taken: int) -> None:
    """Otherwise it may be taken whenever the server is away."""
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    assert all(not first <= ports.choose_port(taken) <= last for _ in range(50))


def test_a_port_on_all_addresses_is_taken_too() -> None:
    """A server that listens on every address is on loopback as well."""
    with closing(socket.socket()) as listener:
        listener.bind(("0.0.0.0", 0))
        listener.listen()
        assert not ports.is_port_free(listener.getsockname()[1])


@pytest.mark.parametrize("goes_away", [False, True])
def test_a_port_that_is_taken_while_letta_starts(
    goes_away: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taken between choosing and binding, it is chosen anew: another one, or the same where it is free again."""
    tried: list[int] = []
    steps: list[Step] = []
    with socket.socket() as taker:
        # A server that ran on this port a moment ago may have left connections in TIME_WAIT.
        taker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)

        def start(_layout: InstancePaths, port: int, *_how: object) -> ServerRun:
            tried.append(port)
            if len(tried) == 1:
                taker.bind(("127.0.0.1", port))
                taker.listen()
                if goes_away:
                    taker.close()
                raise StartFailed("Letta ended. ERROR: [Errno 98] … address already in use")
            return ServerRun(ChildProcess.of(os.getpid()), port, "")

        letta, remembered = starting(tmp_path, start, steps, monkeypatch)
    first, second = tried
    assert (first == second) is goes_away
    assert letta.base_url == f"http://127.0.0.1:{second}"
    assert remembered.letta == second
    assert (f"port {first} is not free: Letta gets {second}" in [step.detail for step in steps]) is not goes_away


def test_a_letta_that_ends_for_another_reason_is_not_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its port is its own: the error is told at once."""
    start = Mock(side_effect=StartFailed("Letta ended."))
    with pytest.raises(StartFailed, match="Letta ended"):
        starting(tmp_path, start, [], monkeypatch)
    start.assert_called_once()


@pytest.mark.parametrize("migrated", [True, False])
def test_a_letta_that_hangs_while_it_starts(migrated: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is given up when it has done nothing for a while, but not while it waits for the database to be migrated."""
    monkeypatch.setattr(letta_process, "_IDLE_SECONDS", 0.1)
    monkeypatch.setattr(letta_process, "SECONDS_TO_START", 60.0 if migrated else 1.0)
    asked: list[bool] = []

    def is_migrated() -> bool:
        asked.append(migrated)
        return migrated

    process = subprocess.Popen(["/bin/sleep", "60"])
    try:
        run = ServerRun(ChildProcess.of(process.pid), 1, "")
        assert not letta_process.wait_until_healthy(
            InstancePaths(tmp_path, "0.16.8", "x"), run, lambda: True, is_migrated
        )
    finally:
        process.kill()
        process.wait()
    assert len(asked) == 1 if migrated else len(asked) > 1


def starting(
    home: Path, start: Callable[..., ServerRun], steps: list[Step], monkeypatch: pytest.MonkeyPatch
) -> tuple[Letta, ports.Ports]:
    """Start Letta's process as told; the server that came up, and the ports that are remembered."""
    server = Server(home, master_key=SecretStr("ab" * 32))
    make_home(server.paths.home)
    for folder in (server.paths.folder.parent, server.paths.folder):
        make_private(folder)
    monkeypatch.setattr(letta_process, "start", start)
    monkeypatch.setattr(letta_process, "wait_until_started", lambda *_how: None)
    monkeypatch.setattr(postgres, "current_revision", lambda *_address: "abc")
    postmaster = Postmaster(ChildProcess.of(os.getpid()), 5433, ready=True)
    database = InstancePostgres(server.paths, postgres.prepare_cluster(server.paths), postmaster)
    letta = server._start_letta(database, "abc", steps.append)
    remembered = ports.load_ports(server.paths.ports_file)
    assert remembered is not None
    return letta, remembered


def test_ports_are_remembered(tmp_path: Path) -> None:
    """A damaged record is none."""
    path = tmp_path / "ports.json"
    assert ports.load_ports(path) is None
    ports.save_ports(path, ports.Ports(letta=1234, postgres=4321))
    assert ports.load_ports(path) == ports.Ports(letta=1234, postgres=4321)
    path.write_text('{"letta": 12')
    assert ports.load_ports(path) is None


def test_a_secret_is_made_once_and_private(tmp_path: Path) -> None:
    """A file that was opened to others is closed again."""
    path = tmp_path / "master-key"
    assert instance.load_secret(path) is None
    made = instance.load_or_create_secret(path)
    assert len(bytes.fromhex(made.get_secret_value())) == 32
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    assert instance.load_or_create_secret(path) == made
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_fingerprint_knows_its_key_and_holds_nothing_of_it() -> None:
    """Two of one key differ; "no key" is a key of its own."""
    key, other = SecretStr("ab" * 32), SecretStr("cd" * 32)
    kept = instance.fingerprint(key)
    assert instance.matches_fingerprint(key, kept)
    assert not instance.matches_fingerprint(other, kept)
    assert not instance.matches_fingerprint(None, kept)
    assert instance.matches_fingerprint(None, instance.fingerprint(None))
    assert not instance.matches_fingerprint(key, instance.fingerprint(None))
    assert kept != instance.fingerprint(key)
    assert key.get_secret_value() not in kept


def test_a_run_is_written_down_and_read_again(tmp_path: Path) -> None:
    """A damaged record is none, and an ended process is not running."""
    paths = InstancePaths(tmp_path)
    make_private(paths.folder)
    assert letta_process.running(paths) is None
    run = ServerRun(ChildProcess.of(os.getpid()), port=8283, key="none")
    run.save(paths.run_file)
    assert letta_process.running(paths) == run
    # The pid is ours, but at another time it was somebody else's.
    ServerRun(ChildProcess(os.getpid(), run.process.started - 1000), port=8283, key="none").save(paths.run_file)
    assert letta_process.running(paths) is None
    paths.run_file.write_text("{}")
    assert ServerRun.load(paths.run_file) is None


def test_nothing_of_an_instance_that_never_was(tmp_path: Path) -> None:
    """Looking and stopping make no folder."""
    server = Server(tmp_path / "home")
    status = server.status()
    assert not status.running
    assert not status.installed
    assert status.data is None
    assert server.down() is False
    assert not (tmp_path / "home").exists()


def test_a_home_that_cannot_be_written_is_named() -> None:
    """Whatever is to be done there."""
    server = Server(Path("/proc/isabella"))
    for use in (server.up, server.start_postgres, server.rekey):
        with pytest.raises(EmbeddedError, match=r"/proc/isabella.* cannot be used") as failed:
            use()
        assert "ISABELLA_HOME" in str(failed.value.remedy)


@pytest.mark.parametrize(
    "content", ["", "x", "{pid}", "{pid}\n/data\n1\n5433\n\n127.0.0.1\n1 1\nready\n", "999999999\n"]
)
def test_a_stale_pid_file_is_no_running_postgres(content: str, tmp_path: Path) -> None:
    """After a reboot its pid may be anybody's: here it is the test's own."""
    cluster = Cluster(tmp_path, tmp_path / "log", None)
    (tmp_path / "postmaster.pid").write_text(content.replace("{pid}", str(os.getpid())))
    assert cluster.running() is None
    assert cluster.stop() is False
    assert psutil.Process().is_running()


def test_vendor_keys_do_not_pass() -> None:
    """What passes is on a list; the operator's proxy does, and loopback goes around it."""
    planted = {
        "PATH": "/bin",
        "OPENAI_API_KEY": CANARY,
        "GROQ_API_KEY": CANARY,
        "LETTA_PG_URI": CANARY,
        "VIRTUAL_ENV": "/v",
        "PYTHONPATH": "/p",
        "HTTPS_PROXY": "http://proxy:3128",
        "NO_PROXY": "corp",
        "UV_DEFAULT_INDEX": "https://index",
        "HOME": "/root",
    }
    for passed in (
        child_processes.offline_environment(planted),
        child_processes.network_environment(planted),
        child_processes.install_environment(planted),
    ):
        assert CANARY not in passed.values()
        assert passed["PATH"] == "/bin"
        assert not {"VIRTUAL_ENV", "PYTHONPATH"} & passed.keys()
    networked = child_processes.network_environment(planted)
    assert networked["HTTPS_PROXY"] == "http://proxy:3128"
    assert networked["NO_PROXY"] == "corp,127.0.0.1,localhost,::1"
    assert child_processes.install_environment(planted)["UV_DEFAULT_INDEX"] == "https://index"


def test_the_servers_environment_is_its_own(tmp_path: Path) -> None:
    """Facts R4 to R6; a master key only where there is one; extra variables for tests last."""
    paths = InstancePaths(tmp_path)
    made = letta_process.environment(
        paths,
        port=1234,
        database=SecretStr("postgresql://isabella:pw@127.0.0.1:1/letta"),
        password=SecretStr("door"),
        socket=tmp_path / ".s.PGSQL.1",
        master_key=None,
        extra={"OPENAI_API_KEY": "wanted"},
    )
    assert made["LETTA_PG_URI"] == f"postgresql://isabella:pw@127.0.0.1:1/letta?ssl=disable&host={tmp_path}"
    assert made["LETTA_DISABLE_SQLALCHEMY_POOLING"] == "false"
    assert made["LETTA_TRACK_PROVIDER_TRACE"] == "false"
    assert made["LETTA_SERVER_PASSWORD"] == "door"
    assert made["HOME"] == str(paths.server_home)
    assert "LETTA_ENCRYPTION_KEY" not in made
    assert made["OPENAI_API_KEY"] == "wanted"


def test_the_launcher_clears_what_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Letta prints its password, and the migrations print the database's."""
    monkeypatch.setenv("LETTA_SERVER_PASSWORD", CANARY)
    monkeypatch.setenv("LETTA_PG_URI", "postgresql://isabella:db-canary@127.0.0.1:1/letta")
    monkeypatch.setenv("GROQ_API_KEY", "gsk_canary")
    written = io.StringIO()
    stream = launch.RedactedStream(written, launch.secrets())
    print(f"password: {CANARY}, postgresql://isabella:db-canary@127.0.0.1:1/letta, gsk_canary", file=stream)
    stream.writelines([CANARY, "plain"])
    assert written.getvalue() == "password: …, postgresql://isabella:…@127.0.0.1:1/letta, …\n…plain"


@pytest.mark.parametrize(
    ("status", "body", "version"),
    [
        (200, '{"version": "0.16.8", "status": "ok"}', "0.16.8"),
        (200, '{"version": "0.16.8", "status": "not ok"}', None),
        (500, '{"version": "0.16.8", "status": "ok"}', None),
        (200, "<html>", None),
        (200, "[]", None),
    ],
)
def test_only_letta_is_healthy(status: int, body: str, version: str | None, httpserver: HTTPServer) -> None:
    """Something else on the port is not taken for it."""
    httpserver.expect_request("/v1/health/").respond_with_data(body, status=status)
    assert letta_process.health(httpserver.port) == version


def test_nothing_on_the_port_is_not_healthy() -> None:
    """A refused connection is an answer too."""
    assert letta_process.health(ports.choose_port(0)) is None


def test_the_last_lines_of_a_log(tmp_path: Path) -> None:
    """However long it is; secrets are taken out; no log has no lines."""
    path = tmp_path / "log"
    assert child_processes.tail_log(path, 5) == []
    secret = instance.load_or_create_secret(tmp_path / "secret").get_secret_value()
    path.write_text("".join(f"line {number} {'x' * 100}\n" for number in range(5000)) + f"the key is {secret}\n")
    last = child_processes.tail_log(path, 3)
    assert [line.split()[1] for line in last] == ["4998", "4999", "key"]
    assert secret not in last[-1]
    assert child_processes.tail_log(path, 0) == []
    assert str(path) in child_processes.quote_log(path)


def test_a_log_is_followed_over_its_rotation(tmp_path: Path) -> None:
    """Whole lines only, from now on, also when the file starts anew."""
    path = tmp_path / "log"
    path.write_text("old\n" * 10)
    following = child_processes.follow_log(path, every=0.01)
    seen: list[str] = []
    reader = Thread(target=lambda: seen.extend(islice(following, 3)), daemon=True)
    reader.start()
    with path.open("a") as file:
        file.write("one\ntw")
        file.flush()
        file.write("o\n")
    while len(seen) < 2 and reader.is_alive():
        time.sleep(0.01)
    path.write_text("three\n")
    reader.join(timeout=10)
    assert seen == ["one", "two", "three"]


def test_a_large_log_is_put_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not grow for ever."""
    monkeypatch.setattr(child_processes, "_TOO_LARGE", 10)
    path = tmp_path / "log"
    path.write_text("small")
    child_processes.rotate_log(path)
    assert path.exists()
    path.write_text("much too large")
    child_processes.rotate_log(path)
    assert not path.exists()
    assert (tmp_path / "log.1").read_text() == "much too large"


def test_a_stray_is_found_by_its_mark_and_nothing_else_is(tmp_path: Path) -> None:
    """A process of another instance, or one that only mentions the folder, is left alone."""
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    stray = subprocess.Popen([*command, "--instance", str(tmp_path / "a")])
    others = [
        subprocess.Popen([*command, "--instance", str(tmp_path / "ab")]),
        subprocess.Popen([*command, str(tmp_path / "a")]),
    ]
    try:
        assert child_processes.stop_orphans("--instance", tmp_path / "a") == 1
        assert not psutil.pid_exists(stray.pid)
        assert [other.poll() for other in others] == [None, None]
    finally:
        for process in (stray, *others):
            process.kill()
            process.wait()


def test_the_launcher_shortens_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    """The decorator of `typeguard` leaves functions as they are, with and without options; nothing is downloaded."""
    typeguard, nltk = ModuleType("typeguard"), ModuleType("nltk")
    vars(nltk)["download"] = Mock(side_effect=AssertionError("a download"))
    monkeypatch.setitem(sys.modules, "typeguard", typeguard)
    monkeypatch.setitem(sys.modules, "nltk", nltk)

    launch.shorten_imports()

    typechecked = vars(typeguard)["typechecked"]
    assert typechecked(test_the_launcher_mark_is_in_the_command) is test_the_launcher_mark_is_in_the_command
    assert typechecked(debug=True)(len) is len
    assert vars(nltk)["download"]("punkt_tab", quiet=True)


def test_the_launcher_shares_certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only between clients that verify with the usual ones; all others get a context of their own."""
    transports = ModuleType("httpx._transports.default")
    vars(transports)["create_ssl_context"] = Mock(side_effect=lambda **_options: object())
    monkeypatch.setitem(sys.modules, "httpx._transports.default", transports)

    launch.share_certificates()

    create = vars(transports)["create_ssl_context"]
    assert create() is create(verify=True, cert=None, trust_env=True)
    assert create() is not create(trust_env=False)
    assert create(verify=False) is not create(verify=False)
    assert create(cert="client.pem") is not create(cert="client.pem")


def test_the_launcher_has_a_docstring_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each text in each style."""
    parse = Mock(side_effect=lambda text, style="auto": [text, style])
    parser = ModuleType("docstring_parser")
    vars(parser)["parse"] = parse
    monkeypatch.setitem(sys.modules, "docstring_parser", parser)

    launch.parse_docstrings_once()

    remembering = vars(parser)["parse"]
    assert remembering("a") is remembering("a")
    assert remembering("a") != remembering("b") != remembering("b", "google")
    assert parse.call_count == 3


def test_the_launcher_keeps_prepared_statements(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a pool, whose other options stay; an engine without a pool is made as before."""
    create = Mock()
    engines = ModuleType("sqlalchemy.ext.asyncio")
    vars(engines)["create_async_engine"] = create
    monkeypatch.setitem(sys.modules, "sqlalchemy.ext.asyncio", engines)

    launch.keep_statements()

    given = {"timeout": 30, "statement_cache_size": 0, "prepared_statement_cache_size": 0}
    vars(engines)["create_async_engine"]("postgresql://", pool_size=25, connect_args=given)
    kept = {**given, "prepared_statement_cache_size": launch.STATEMENTS}
    create.assert_called_once_with("postgresql://", pool_size=25, pool_use_lifo=True, connect_args=kept)
    vars(engines)["create_async_engine"]("postgresql://", poolclass="NullPool")
    create.assert_called_with("postgresql://", poolclass="NullPool")


def test_the_launcher_gets_rows_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Relationships that would be loaded with a row are not; those that are never loaded stay so."""

    class Session:
        async def get(self, entity: type, ident: str, **options: Any) -> tuple[type, str, dict[str, Any]]:
            return entity, ident, options

    class Agent:
        tools, blocks, runs = "tools of it", "blocks of it", "runs of it"

    relationships = [
        SimpleNamespace(key=key, lazy=lazy)
        for key, lazy in (
            ("tools", "selectin"),
            ("blocks", "joined"),
            ("runs", "raise"),
        )
    ]
    sessions, orm = ModuleType("sqlalchemy.ext.asyncio"), ModuleType("sqlalchemy.orm")
    vars(sessions)["AsyncSession"] = Session
    vars(orm)["class_mapper"] = lambda entity: SimpleNamespace(relationships=relationships)
    vars(orm)["lazyload"] = lambda attribute: f"not {attribute}"
    monkeypatch.setitem(sys.modules, "sqlalchemy.ext.asyncio", sessions)
    monkeypatch.setitem(sys.modules, "sqlalchemy.orm", orm)

    launch.get_rows_alone()

    alone = ["not tools of it", "not blocks of it"]
    assert asyncio.run(Session().get(Agent, "a")) == (Agent, "a", {"options": alone})
    got = asyncio.run(Session().get(Agent, "a", options=["own"], populate_existing=True))
    assert got == (Agent, "a", {"options": ["own", *alone], "populate_existing": True})


def test_the_launcher_pings_a_connection_without_a_question(monkeypatch: pytest.MonkeyPatch) -> None:
    """A closed one is an error of the driver, which has the pool replace it; an open one is asked nothing."""

    class Refused(Exception):
        pass

    class Connection:
        def __init__(self, *, closed: bool) -> None:
            self._connection = Mock(spec=["is_closed"])
            self._connection.is_closed.return_value = closed

        def _handle_exception(self, error: Exception) -> None:
            raise Refused from error

    asyncpg, driver = ModuleType("asyncpg"), ModuleType("sqlalchemy.dialects.postgresql.asyncpg")
    vars(asyncpg)["InterfaceError"] = type("InterfaceError", (Exception,), {})
    vars(driver)["AsyncAdapt_asyncpg_connection"] = Connection
    monkeypatch.setitem(sys.modules, "asyncpg", asyncpg)
    monkeypatch.setitem(sys.modules, "sqlalchemy.dialects.postgresql.asyncpg", driver)

    launch.ping_without_question()

    open_one: Any = Connection(closed=False)
    assert open_one.ping() is None
    closed: Any = Connection(closed=True)
    with pytest.raises(Refused):
        closed.ping()


def test_the_launcher_mark_is_in_the_command(tmp_path: Path) -> None:
    """What the search for orphan processes looks for is what the server is started with."""
    paths = InstancePaths(tmp_path)
    command = letta_process.launch_command(paths)
    assert command[-2:] == ["--instance", str(paths.folder)]


def test_the_command_line_means_the_same_defaults() -> None:
    """It spells them out, because importing them would make `isabella --help` slow."""
    assert (letta_commands.DEFAULT_RELEASE, letta_commands.DEFAULT_INSTANCE) == (DEFAULT_RELEASE, DEFAULT_INSTANCE)


def test_the_default_places_are_plain_paths(tmp_path: Path) -> None:
    """Without root, the database lies with the rest of the instance."""
    paths = InstancePaths(tmp_path)
    at_home, _ = postgres._clusters(paths, None)
    assert at_home.data.parent == paths.folder
    assert json.dumps(str(at_home.data))


def test_a_process_that_ended_under_another_parent_is_not_waited_for() -> None:
    """Its parent need not ask how it ended: Isabella's backend, say, which started it and still runs."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        script = f"""
import time
from isabella.system.processes import ChildProcess as Process
began = time.monotonic()
assert Process.of({child.pid}).stop(grace=30)
assert time.monotonic() - began < 20
"""
        subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
    finally:
        child.kill()
        child.wait()


def test_a_child_of_ours_that_ends_while_it_is_looked_at_leaves_no_zombie(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends at the worst moment: after the wait has begun, just before it is asked whether it has ended."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    ended = processes.has_ended

    def ends_now(process: psutil.Process) -> bool:
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and nobody has asked how
        return ended(process)

    monkeypatch.setattr(processes, "has_ended", ends_now)
    monkeypatch.setattr(psutil.Process, "terminate", lambda _: None)
    try:
        assert ChildProcess.of(child.pid).stop()
        assert not psutil.pid_exists(child.pid)
    finally:
        child.kill()
        child.wait()
