"""What all tests share: one real Letta on a real Postgres for the whole session."""

from __future__ import annotations

import logging
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import structlog
from hypothesis import HealthCheck, settings

from isabella.embedded import Letta, Server
from isabella.system.terminal import set_message_format

# Where the run itself stands in the background, SIGINT is ignored, and children inherit that. Ours are interrupted.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How fast a machine is, and which examples a run happens to draw, decide no test. `make soak` draws others.
settings.register_profile(
    "tests", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tests")

# Below the project, so that a release is installed once and then used by every session.
_HOME = Path(__file__).resolve().parents[1] / ".isabella" / "tests"


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
    """Makes servers with fresh data of their own; `new_server("name", encrypt=False)`. All are erased in the end."""
    made: list[Server] = []

    def make(name: str, **options: object) -> Server:
        server = Server(letta_home, instance=f"tests-{os.getpid()}-{name}", **options)  # type: ignore[arg-type]
        made.append(server)
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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tell how far the long walks went: their points, steps and writes."""
    reports = [report for some in terminalreporter.stats.values() for report in some]
    told = [
        str(value)
        for report in reports
        if getattr(report, "when", None) == "call"
        for name, value in report.user_properties
        if name == "walked"
    ]
    if told:
        terminalreporter.section("walked")
        for line in told:
            terminalreporter.line(line)
