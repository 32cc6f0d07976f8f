"""What all tests share: one real Letta on a real Postgres for the whole session."""

from __future__ import annotations

import functools
import logging
import os
import re
import signal
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import httpcore2
import psutil
import pytest
import structlog
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from isabella.embedded import Letta, Server
from isabella.system.garbage import collect_rarely
from isabella.system.terminal import set_message_format
from tests.support import migrated_database
from tests.support.letta_admin import open_admin
from tests.support.views import VIEWS

# Where the run itself stands in the background, SIGINT is ignored, and children inherit that. Ours are interrupted.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

collect_rarely()

# How fast a machine is, and which examples a run happens to draw, decide no test. `make soak` draws others.
settings.register_profile(
    "tests", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tests")

# To read all certificates takes 25 ms, and each client of a test would do it. No test changes SSL_CERT_FILE.
vars(httpcore2)["default_ssl_context"] = functools.cache(httpcore2.default_ssl_context)

# Below the project, so that a release is installed once and then used by every session.
_HOME = Path(__file__).resolve().parents[1] / ".isabella" / "tests"


#: Files that take long on two quiet cores, with their seconds; of a split file, the seconds of one case. They come
#: first, so that short files fill the gaps at the end. A run prints the seconds that it took.
_SECONDS = {
    "gateway": 205,
    "many_backends": 200,
    "doctor_faults": 175,
    "embedded": 150,
    "all_pages": 150,
    "chat_page": 145,
    "turns_under_faults": 125,
    "real_model": 120,
    "providers_matrix": 120,
    "backup": 115,
    "openapi": 115,
    "home_files": 105,
    "turns": 105,
    "fault_walk_fake": 95,
    "agents_llm_config": 95,
    "rekey": 95,
    "floods": 95,
    "letta_failures": 85,
    "agents_embeddings": 75,
    "bench": 70,
    "restart": 70,
    "turns_order": 70,
    "embedded_users": 65,
    "canaries": 65,
    "agents_page": 60,
    "agents_import_export": 60,
    "impostors": 60,
    "endpoint_migration": 60,
    "chat_command": 50,
    "turns_idempotency": 50,
    "named_vendors": 50,
    "file_limits": 50,
    "agents_memory": 50,
    "chaos": 45,
    "turns_access": 45,
    "connection_loss": 45,
    "audit_log": 45,
    "demo": 40,
    "memory_page": 40,
    "state_machine_fake": 40,
    "providers_page": 40,
    "practice_vendors": 35,
    "turns_context": 35,
    "agents_command": 35,
    "outages": 35,
    "crash_walk": 35,
    "replicas": 35,
    "conversations": 35,
    "compat": 30,
    "sign_in": 30,
    "turns_conversations": 30,
    "agents_reflection": 30,
    "watch": 30,
    "doctor_log_messages": 25,
    "seed_claims": 25,
    "postgres_faults": 25,
    "practice_daemon": 25,
    "gateway_adapting": 25,
    "fault_walk": 25,
    "terminal_output": 20,
    "export_memory": 20,
    "access": 20,
    "agents_switching": 20,
    "cli_providers": 20,
    "letta_client": 20,
    "wheel": 20,
    "peers": 20,
    "agents_reconcile": 15,
    "backups": 15,
    "turn_attempt": 15,
    "tracing": 15,
    "own_postgres": 15,
    "activity_page": 15,
    "fake_letta_contract": 15,
}
#: Files whose cases may run on different workers.
_SPLIT = frozenset({"crash_walk", "fault_walk"})
#: Files that run on the same worker, because they share a server that no other file uses.
_TOGETHER = dict.fromkeys(("seed_claims", "providers_matrix", "fake_letta_contract"), "unsealed")
#: How many of the longest files a run prints.
_LONGEST = 15


def pytest_addoption(parser: pytest.Parser) -> None:
    """The view of the browser tests. An option has to be known before `tests/browser/conftest.py` is read."""
    parser.addoption("--view", choices=[*VIEWS], help="run the browser tests in this view (width and theme)")


@pytest.fixture(autouse=True)
def _logs_as_before() -> Iterator[None]:
    """A command that runs in the tests' own process sends all logs to its own streams, which are closed soon."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers = handlers
    root.setLevel(level)
    structlog.reset_defaults()
    set_message_format(as_json=False)


@pytest.fixture(scope="session")
def letta_home() -> Path:
    """The home of the tests' own servers; what sessions that were killed left there is cleared away."""
    for folder in (_HOME / "letta").glob("*-tests-*"):
        release, instance, pid = re.fullmatch(r"([\d.]+)-(tests-(\d+).*)", folder.name).groups()  # type: ignore[union-attr]
        if not psutil.pid_exists(int(pid)):
            Server(_HOME, release=release, instance=instance).erase()
    return _HOME


@pytest.fixture(scope="session")
def new_server(letta_home: Path) -> Iterator[Callable[..., Server]]:
    """Makes servers with fresh data of their own; `new_server("name", encrypt=False)`. All are erased in the end.

    `migrated=False` leaves it to the first start to create the database.
    """
    made: list[Server] = []

    def make(name: str, *, migrated: bool = True, **options: object) -> Server:
        server = Server(letta_home, instance=f"tests-{os.getpid()}-{name}", **options)  # type: ignore[arg-type]
        made.append(server)
        if migrated:
            migrated_database.place(server)
        return server

    yield make
    for server in made:
        server.erase()


@pytest.fixture(scope="session")
def embedded(new_server: Callable[..., Server]) -> Server:
    """The session's server as an object, to stop and start it under another master key."""
    return new_server("shared")


@pytest.fixture(scope="session")
def letta_server(embedded: Server) -> Letta:
    """The session's Letta, running, with a master key of its own."""
    return embedded.up()


@pytest.fixture(scope="session")
def unsealed_letta(new_server: Callable[..., Server]) -> Letta:
    """A Letta without a master key, running."""
    return new_server("unsealed", encrypt=False).up()


@pytest.fixture(scope="module")
def empty_letta(letta_server: Letta) -> Iterator[Letta]:
    """The session's Letta without agents and providers; for modules that check everything in it."""
    with open_admin(letta_server) as admin:
        admin.delete_everything()
    yield letta_server
    with open_admin(letta_server) as admin:
        admin.delete_everything()


class FileScheduling(LoadScopeScheduling):  # type: ignore[misc]
    """A scheduler that gives a worker a whole file, but of the split files a case at a time.

    `--dist loadgroup` of xdist 3.8 has no effect with pytest 9.2, which no longer takes the group into the node id.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        name = Path(file).stem.removeprefix("test_")
        return nodeid if name in _SPLIT else _TOGETHER.get(name, file)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> FileScheduling | None:
    """Use it for `--dist loadfile`."""
    return FileScheduling(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put long files first."""
    items.sort(key=lambda item: -_SECONDS.get(_name_of(item), 0))


def _name_of(item: pytest.Item) -> str:
    return item.path.stem.removeprefix("test_")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how many points, steps and writes the walks covered, and which files took longest."""
    reports = [
        report
        for reports in terminalreporter.stats.values()
        for report in reports
        if isinstance(report, pytest.TestReport)
    ]
    _print_walks(terminalreporter, [report for report in reports if report.when == "call"])
    seconds: defaultdict[str, float] = defaultdict(float)
    workers: defaultdict[str, float] = defaultdict(float)
    for report in reports:
        seconds[report.location[0]] += report.duration
        workers[getattr(report, "worker_id", "")] += report.duration
    if len(seconds) > 1:
        terminalreporter.section("longest files")
        longest = sorted(seconds.items(), key=lambda item: -item[1])[:_LONGEST]
        for name, spent in [*longest, *sorted(workers.items())]:
            terminalreporter.line(f"{spent:7.1f} s  {name}")


def _print_walks(terminalreporter: pytest.TerminalReporter, reports: list[pytest.TestReport]) -> None:
    lines: list[str] = []
    totals: Counter[str] = Counter()
    for name, value in [item for report in reports for item in report.user_properties]:
        if name == "walked":
            lines.append(str(value))
        elif name == "points":
            walk, points = cast("tuple[str, int]", value)
            totals[walk] += points
    if lines:
        terminalreporter.section("walked")
        for line in [*sorted(lines), *(f"{walk}: {points} points in all" for walk, points in sorted(totals.items()))]:
            terminalreporter.line(line)
