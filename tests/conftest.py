"""What all tests share: one real Letta on a real Postgres for the whole session."""

from __future__ import annotations

import logging
import os
import re
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import structlog
from hypothesis import HealthCheck, settings

from isabella.embedded import Letta, Server
from isabella.system.terminal import set_message_format
from tests.support.letta_admin import open_admin

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


#: Seconds that a file takes on two quiet cores; if it is split, that its longest case takes. Short files are absent.
_SECONDS: dict[str, int] = {}


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


@pytest.fixture(scope="module")
def empty_letta(letta_server: Letta) -> Iterator[Letta]:
    """The session's Letta without agents and providers; for modules that check everything in it."""
    with open_admin(letta_server) as admin:
        admin.delete_everything()
    yield letta_server
    with open_admin(letta_server) as admin:
        admin.delete_everything()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the tests for `--dist loadgroup`: a file is one group unless it is marked `split`, long ones first."""
    for item in items:
        if item.get_closest_marker("split") is None:
            item.add_marker(pytest.mark.xdist_group(_name_of(item)))
    items.sort(key=lambda item: -_SECONDS.get(_name_of(item), 0))


def _name_of(item: pytest.Item) -> str:
    return item.path.stem.removeprefix("test_")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how many points, steps and writes the walks covered, each with its sum."""
    properties = [
        (name, value)
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", None) == "call"
        for name, value in report.user_properties
    ]
    lines = [str(value) for name, value in properties if name == "walked"]
    totals: Counter[str] = Counter()
    for name, value in properties:
        if name == "points":
            walk, points = value
            totals[walk] += points
    if lines:
        terminalreporter.section("walked")
        for line in [*sorted(lines), *(f"{walk}: {points} points in all" for walk, points in sorted(totals.items()))]:
            terminalreporter.line(line)
